# build/bin/tokenmill: one file a subcommand.
find_package(CLI11 REQUIRED)
file(GLOB tokenmill_cli_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cli/*.cc)
add_executable(tokenmill_cli ${tokenmill_cli_sources})
set_target_properties(tokenmill_cli PROPERTIES OUTPUT_NAME tokenmill)
target_include_directories(tokenmill_cli PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(tokenmill_cli PRIVATE tokenmill tm_verify CLI11::CLI11 nlohmann_json::nlohmann_json Threads::Threads)

# The manual page and the completion scripts, written by the program from its own table of options.
file(MAKE_DIRECTORY ${TM_SHARE})
set(generated ${TM_SHARE}/tokenmill.1.gz)
add_custom_command(OUTPUT ${TM_SHARE}/tokenmill.1.gz
                   COMMAND tokenmill_cli man > ${TM_SHARE}/tokenmill.1
                   COMMAND gzip -9nf ${TM_SHARE}/tokenmill.1
                   DEPENDS tokenmill_cli)
foreach(shell bash zsh fish)
  add_custom_command(OUTPUT ${TM_SHARE}/completion.${shell}
                     COMMAND tokenmill_cli completion ${shell} > ${TM_SHARE}/completion.${shell} DEPENDS tokenmill_cli)
  list(APPEND generated ${TM_SHARE}/completion.${shell})
endforeach()
add_custom_target(tokenmill_share ALL DEPENDS ${generated})
