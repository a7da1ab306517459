tm_test(workloads_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/workloads_test.cc
        ${CMAKE_SOURCE_DIR}/bench/program_workloads.cc LIBS tm_sched)
target_include_directories(workloads_test PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_options(workloads_test PRIVATE -Wno-missing-field-initializers)
tm_test(soak_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/soak_test.cc LIBS tm_engine)
set_tests_properties(soak_test PROPERTIES TIMEOUT 14400)
tm_test(saved_prefix_engine_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/saved_prefix_test.cc LIBS tm_engine)
target_compile_options(saved_prefix_engine_test PRIVATE -Wno-missing-field-initializers)
