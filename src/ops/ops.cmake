# ops/ holds the list of operations; ops/cpu/ its CPU implementation, ops/cuda/ the one for CUDA devices.
file(GLOB TM_OPS_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cc ${CMAKE_CURRENT_LIST_DIR}/cpu/*.cc)
if(TOKENMILL_CUDA)
  file(GLOB TM_OPS_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cuda/*.cc
       ${CMAKE_CURRENT_LIST_DIR}/cuda/*.cu)
  list(APPEND TM_OPS_SOURCES ${TM_OPS_CUDA_SOURCES})
endif()
tm_module(ops DEPS base batch SOURCES ${TM_OPS_SOURCES})
if(TOKENMILL_CUDA)
  target_link_libraries(tm_ops PUBLIC CUDA::cublas CUDA::cudart_static)
  target_compile_definitions(tm_ops PRIVATE TOKENMILL_CUDA)
endif()
