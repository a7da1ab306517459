foreach(name input_ids token_in_token_out chat coroutines)
  add_executable(${name} ${CMAKE_CURRENT_LIST_DIR}/${name}.cc)
  target_link_libraries(${name} PRIVATE tokenmill Threads::Threads)
endforeach()
