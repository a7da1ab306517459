tm_test(sched_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/sched_test.cc ${CMAKE_CURRENT_LIST_DIR}/sched_finish_test.cc
        ${CMAKE_CURRENT_LIST_DIR}/sched_policy_test.cc ${CMAKE_CURRENT_LIST_DIR}/sched_policy_property_test.cc
        ${CMAKE_CURRENT_LIST_DIR}/sched_limits_test.cc ${CMAKE_CURRENT_LIST_DIR}/sched_ahead_test.cc LIBS tm_sched)
