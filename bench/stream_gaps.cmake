add_executable(stream_gaps ${CMAKE_CURRENT_LIST_DIR}/stream_gaps.cc)
target_link_libraries(stream_gaps PRIVATE tm_engine)
