# Finds a cargo that is new enough (tools/find_cargo decides) and sets TOKENMILL_CARGO to it, or to a wrapper of it where
# its rustc is not the one on PATH (Ubuntu's versioned packages, rustup before a new login).
if(NOT TOKENMILL_CARGO OR NOT EXISTS "${TOKENMILL_CARGO}")
  execute_process(COMMAND ${PROJECT_SOURCE_DIR}/tools/find_cargo OUTPUT_VARIABLE _rust_folder RESULT_VARIABLE _rust_result
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT _rust_result EQUAL 0)
    message(FATAL_ERROR "Rust 1.87 or newer is needed (cargo and rustc); run tools/setup or install it from "
                        "https://rustup.rs")
  endif()
  find_program(_rust_on_path cargo NO_CACHE)
  set(_cargo "${_rust_folder}/cargo")
  if(NOT _rust_on_path STREQUAL _cargo)
    set(_cargo "${PROJECT_BINARY_DIR}/cargo-wrapper")
    file(WRITE "${_cargo}" "#!/bin/sh\nPATH=\"${_rust_folder}:$PATH\" exec \"${_rust_folder}/cargo\" \"$@\"\n")
    file(CHMOD "${_cargo}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ
                                       WORLD_EXECUTE)
  endif()
  set(TOKENMILL_CARGO "${_cargo}" CACHE FILEPATH "cargo 1.87 or newer" FORCE)
endif()
