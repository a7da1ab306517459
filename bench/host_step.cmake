add_executable(host_step ${CMAKE_CURRENT_LIST_DIR}/host_step.cc)
target_link_libraries(host_step PRIVATE tm_sched)
