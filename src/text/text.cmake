# tm_text: the C++ faces in this folder over one Rust static library (shim/).
#
# Any cargo of at least the version in shim/Cargo.toml will do; Debian's cargo-web installs it as plain `cargo`,
# Ubuntu's versioned packages as cargo-1.NN, rustup into ~/.cargo/bin.
find_program(TOKENMILL_CARGO NAMES cargo cargo-web cargo-1.90 cargo-1.89 cargo-1.88 cargo-1.87 cargo-1.86 cargo-1.85
             HINTS $ENV{CARGO_HOME}/bin $ENV{HOME}/.cargo/bin
             DOC "cargo, for the Rust library in src/text/shim")
if(NOT TOKENMILL_CARGO)
  message(FATAL_ERROR "cargo was not found. Run tools/setup, or install Rust (Debian 12: cargo-web rustc-web).")
endif()

set(TM_SHIM_DIR ${CMAKE_CURRENT_LIST_DIR}/shim)
set(TM_SHIM_LIB ${TOKENMILL_CARGO_TARGET_DIR}/release/libtm_text_shim.a)
file(GLOB TM_SHIM_SOURCES CONFIGURE_DEPENDS ${TM_SHIM_DIR}/src/*.rs)
# cargo builds what changed and leaves the archive's time alone otherwise, so touch it: ninja compares times.
add_custom_command(
  OUTPUT ${TM_SHIM_LIB}
  COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${TOKENMILL_CARGO_TARGET_DIR} ${TOKENMILL_CARGO} build --release
          --locked
  COMMAND ${CMAKE_COMMAND} -E touch ${TM_SHIM_LIB}
  DEPENDS ${TM_SHIM_SOURCES} ${TM_SHIM_DIR}/Cargo.toml ${TM_SHIM_DIR}/Cargo.lock
  WORKING_DIRECTORY ${TM_SHIM_DIR}
  COMMENT "Building the Rust text library with ${TOKENMILL_CARGO}"
  USES_TERMINAL
  VERBATIM)
add_custom_target(tm_text_shim_build DEPENDS ${TM_SHIM_LIB})
add_library(tm_text_shim STATIC IMPORTED GLOBAL)
set_target_properties(tm_text_shim PROPERTIES IMPORTED_LOCATION ${TM_SHIM_LIB})
add_dependencies(tm_text_shim tm_text_shim_build)

# PUBLIC, as an archive that links this one needs it too; the checkpoint module calls its safetensors functions.
tm_module(text DEPS base LIBS tm_text_shim Threads::Threads ${CMAKE_DL_LIBS} m)
