tm_test(text_fuzz_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/text_fuzz_test.cc
  LIBS tm_text)
