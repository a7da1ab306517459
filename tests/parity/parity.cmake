# The command line's verify against the independent checker. Both need the tokenmill program.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_Interpreter_FOUND AND TARGET tokenmill_cli)
  add_test(NAME checker_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/checker_test.py
                                     $<TARGET_FILE:tokenmill_cli> ${CMAKE_SOURCE_DIR}/tests/data/tiny)
  add_test(NAME parity_test COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/check_parity.py
                                    $<TARGET_FILE:tokenmill_cli>)
  # 77: "not run", where the models and goldens are not there.
  set_tests_properties(parity_test PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 7200)
endif()
