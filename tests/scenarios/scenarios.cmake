tm_test(log_oracle_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/log_oracle_test.cc LIBS tm_sched)
