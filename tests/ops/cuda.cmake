tm_test(ops_cuda_test SOURCES cuda_backend_test.cc cuda_sample_test.cc cuda_invariant_test.cc cuda_small_test.cc
                              ${CMAKE_SOURCE_DIR}/tests/models/naive_backend.cc LIBS tm_ops)
# Options of the backend itself choose which kernels are compared: a build without CUDA does not have them.
if(TOKENMILL_CUDA)
  target_sources(ops_cuda_test PRIVATE cuda_attention_test.cc cuda_linear_test.cc cuda_many_linear_test.cc)
endif()
