add_executable(ops_linear ${CMAKE_CURRENT_SOURCE_DIR}/ops_linear.cc)
target_link_libraries(ops_linear PRIVATE tm_ops)
