# ops/ holds the list of operations; ops/cpu/ its CPU implementation, ops/cuda/ the one for CUDA devices.
file(GLOB TM_OPS_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cc ${CMAKE_CURRENT_LIST_DIR}/cpu/*.cc)
if(TOKENMILL_CUDA)
  file(GLOB TM_OPS_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cuda/*.cc
       ${CMAKE_CURRENT_LIST_DIR}/cuda/*.cu)
  list(APPEND TM_OPS_SOURCES ${TM_OPS_CUDA_SOURCES})
endif()
tm_module(ops DEPS base batch SOURCES ${TM_OPS_SOURCES})
if(TOKENMILL_CUDA)
  # cuBLAS is loaded when a CUDA backend is made (cuda/cublas_library.h), libcuda by the runtime: neither is linked.
  target_link_libraries(tm_ops PUBLIC CUDA::cudart_static ${CMAKE_DL_LIBS})
  # Only where they are needed, so that all the rest compiles as it does without CUDA.
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/backend_registry.cc PROPERTIES COMPILE_DEFINITIONS TOKENMILL_CUDA)
  set_source_files_properties(${TM_OPS_CUDA_SOURCES} PROPERTIES INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS}")
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/cuda/cublas_library.cc PROPERTIES COMPILE_DEFINITIONS
                              "TOKENMILL_CUBLAS_FOLDER=\"${CUDAToolkit_LIBRARY_DIR}\"")
endif()
