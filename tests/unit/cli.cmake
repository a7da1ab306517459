# The command line as a user runs it, over a tiny model folder.
if(TARGET tokenmill_cli)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  add_test(NAME cli_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/cli/test_cli.py
                                 $<TARGET_FILE:tokenmill_cli> ${CMAKE_SOURCE_DIR}/tests/data/tiny/stories260k)
  set_tests_properties(cli_test PROPERTIES TIMEOUT 300)
  add_test(NAME batch_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/cli/test_batch.py
                                   $<TARGET_FILE:tokenmill_cli> ${CMAKE_SOURCE_DIR}/tests/data/tiny/stories260k)
  set_tests_properties(batch_test PROPERTIES TIMEOUT 300)
  # In the Python tests' environment, where there is one: it has huggingface_hub, to compare caches with.
  set(hub_python ${Python3_EXECUTABLE})
  if(TOKENMILL_BUILD_PYTHON)
    set(hub_python ${Python_EXECUTABLE})
  endif()
  foreach(part downloads faults refusals)
    add_test(NAME hub_${part}_test COMMAND ${hub_python} ${CMAKE_SOURCE_DIR}/tests/cli/test_hub_${part}.py
                                   $<TARGET_FILE:tokenmill_cli> ${CMAKE_SOURCE_DIR}/tests/data/tiny/stories260k)
    set_tests_properties(hub_${part}_test PROPERTIES TIMEOUT 300)
  endforeach()
  add_test(NAME tools_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/cli/test_tools.py)
  set_tests_properties(tools_test PROPERTIES TIMEOUT 120)
endif()
