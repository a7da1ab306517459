if(TOKENMILL_CUDA)
  add_executable(cuda_decode ${CMAKE_CURRENT_LIST_DIR}/cuda_decode.cc)
  target_link_libraries(cuda_decode PRIVATE tm_ops)
endif()
