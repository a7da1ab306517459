add_executable(start_line ${CMAKE_CURRENT_LIST_DIR}/start_line.cc)
target_link_libraries(start_line PRIVATE tm_engine)
