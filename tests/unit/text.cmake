tm_test(text_test SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/text_tokenizer_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/text_stream_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/text_stop_matcher_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/text_chat_test.cc
  LIBS tm_text)
