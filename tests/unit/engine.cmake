tm_test(engine_args_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/engine_server_args_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_sampling_params_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/engine_pool_size_test.cc
  LIBS tm_engine)
