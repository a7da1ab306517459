# Finds a cargo that is new enough (tools/find_cargo decides) and sets
#   TOKENMILL_CARGO       the program
#   TOKENMILL_RUST_PATH   the folder that must come first on PATH when it runs, so that its own rustc is taken
if(NOT TOKENMILL_CARGO OR NOT EXISTS "${TOKENMILL_CARGO}")
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/tools/find_cargo OUTPUT_VARIABLE _rust_folder RESULT_VARIABLE _rust_result
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT _rust_result EQUAL 0)
    message(FATAL_ERROR "Rust 1.87 or newer is needed (cargo and rustc); run tools/setup or install it from https://rustup.rs")
  endif()
  set(TOKENMILL_CARGO "${_rust_folder}/cargo" CACHE FILEPATH "cargo 1.87 or newer" FORCE)
endif()
get_filename_component(TOKENMILL_RUST_PATH "${TOKENMILL_CARGO}" DIRECTORY)
