# build/bin/tokenmill: one file a subcommand.
find_package(CLI11 REQUIRED)
file(GLOB tokenmill_cli_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cli/*.cc)
add_executable(tokenmill_cli ${tokenmill_cli_sources})
set_target_properties(tokenmill_cli PROPERTIES OUTPUT_NAME tokenmill)
target_include_directories(tokenmill_cli PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(tokenmill_cli PRIVATE tokenmill tm_verify CLI11::CLI11 nlohmann_json::nlohmann_json Threads::Threads)
