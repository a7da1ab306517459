add_library(shadow_model STATIC ${CMAKE_CURRENT_LIST_DIR}/shadow_model.cc)
target_include_directories(shadow_model PUBLIC ${CMAKE_SOURCE_DIR}/tests)
target_link_libraries(shadow_model PUBLIC tm_engine)
# Tests name the fields they mean; the rest keep the defaults of their struct.
target_compile_options(shadow_model PUBLIC -Wno-missing-field-initializers)

tm_test(engine_scenarios_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/engine_modes_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_cancel_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_failure_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_cache_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_requests_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_steps_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_memory_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_lists_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_oracle_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_batch_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_metrics_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_coroutine_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_overlap_test.cc
  LIBS shadow_model)
# All of them again with each step launched before the one before it is committed.
add_test(NAME engine_scenarios_overlap_test COMMAND engine_scenarios_test)
set_tests_properties(engine_scenarios_overlap_test PROPERTIES ENVIRONMENT "TOKENMILL_SCENARIO_OVERLAP=1" TIMEOUT 600)
tm_test(engine_bits_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/engine_bits_test.cc
        ${CMAKE_SOURCE_DIR}/tests/models/quantized_checkpoint.cc ${CMAKE_SOURCE_DIR}/src/verify/probe.cc LIBS shadow_model TIMEOUT 1800)
