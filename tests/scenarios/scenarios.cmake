# The scheduler and the cache against a toy device.
tm_test(log_oracle_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/log_oracle_test.cc LIBS tm_sched)
tm_test(simulation_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/simulation_test.cc ${CMAKE_CURRENT_LIST_DIR}/simulation.cc
        ${CMAKE_CURRENT_LIST_DIR}/script.cc LIBS tm_sched)
target_compile_definitions(simulation_test PRIVATE TOKENMILL_TEST_SCRIPTS="${CMAKE_CURRENT_LIST_DIR}/scripts")
tm_test(text_scenario_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/text_scenario_test.cc LIBS tm_sched)
target_compile_definitions(text_scenario_test PRIVATE TOKENMILL_TEST_SCENARIOS="${CMAKE_CURRENT_LIST_DIR}")

# One binary a mutation (src/cache/mutation.h), each with its own copy of the two modules.
file(GLOB mutation_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/cache/*.cc ${CMAKE_SOURCE_DIR}/src/sched/*.cc)
foreach(mutation 1 2 3 4 5 6 7)
  tm_test(mutation_${mutation}_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/mutation_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/simulation.cc ${CMAKE_CURRENT_LIST_DIR}/script.cc ${mutation_sources} LIBS tm_text tm_batch tm_base)
  target_compile_definitions(mutation_${mutation}_test PRIVATE TOKENMILL_MUTATION=${mutation})
  set_target_properties(mutation_${mutation}_test PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  # The mutation that forgets locks leaks nodes on purpose.
  set_tests_properties(mutation_${mutation}_test PROPERTIES ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
endforeach()
