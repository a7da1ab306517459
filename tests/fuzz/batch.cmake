tm_test(batch_fuzz_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/batch_fuzz_test.cc
  LIBS tm_engine)
