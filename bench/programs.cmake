add_executable(programs ${CMAKE_CURRENT_LIST_DIR}/programs.cc ${CMAKE_CURRENT_LIST_DIR}/program_workloads.cc)
target_include_directories(programs PRIVATE ${CMAKE_SOURCE_DIR})
target_link_libraries(programs PRIVATE tm_engine)
target_compile_options(programs PRIVATE -Wno-missing-field-initializers)
