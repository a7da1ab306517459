# Debian packages by CPack (make deb): tokenmill, the shared library and libtokenmill-dev.
set(abi ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tokenmill)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "The tokenmill developers <tokenmill@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_COMPONENTS_ALL cli runtime dev)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE
    WORLD_READ WORLD_EXECUTE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_COMPRESSION_TYPE gzip)  # xz takes two minutes for what is a fifth smaller

set(CPACK_DEBIAN_CLI_PACKAGE_NAME tokenmill)
set(CPACK_DEBIAN_CLI_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_CLI_PACKAGE_RECOMMENDS "libcurl4 | libcurl3-gnutls")  # loaded for a download from the hub
set(CPACK_COMPONENT_CLI_DESCRIPTION "run language models from the command line
tokenmill loads a language model from a Hugging Face folder or a GGUF file
and generates text with it: one prompt, a chat or a file of a million lines,
on the processor, without Python and without a server.")

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME libtokenmill${abi})
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_RECOMMENDS "libcurl4 | libcurl3-gnutls")
# Who links the library asks for this package, and the linker's cache learns of it.
file(WRITE ${PROJECT_BINARY_DIR}/share/deb/shlibs "libtokenmill ${abi} libtokenmill${abi} (>= ${PROJECT_VERSION})\n")
file(WRITE ${PROJECT_BINARY_DIR}/share/deb/triggers "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA ${PROJECT_BINARY_DIR}/share/deb/shlibs
    ${PROJECT_BINARY_DIR}/share/deb/triggers)
set(CPACK_COMPONENT_RUNTIME_DESCRIPTION "language model inference engine (shared library)
A C++20 library that runs language models inside a program, with continuous
batching, a prefix cache and kernels for AVX2, AVX-512 and AMX.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libtokenmill-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_SHLIBDEPS OFF)
string(REGEX MATCH "^[0-9]+" compiler "${CMAKE_CXX_COMPILER_VERSION}")
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libtokenmill${abi} (= ${PROJECT_VERSION}-1), libstdc++-${compiler}-dev | libstdc++-dev")
set(CPACK_COMPONENT_DEV_DESCRIPTION "language model inference engine (headers and static library)
The headers, the static library, and the files by which CMake and pkg-config
find tokenmill, a C++20 library that runs language models inside a program.")

# Each package carries its licence and its history, the latter compressed without a time of its own.
find_program(GZIP_PROGRAM gzip)
set(TM_DOC ${PROJECT_BINARY_DIR}/share/doc)
file(MAKE_DIRECTORY ${TM_DOC})
file(READ ${PROJECT_SOURCE_DIR}/NOTICE notice)
file(READ ${PROJECT_SOURCE_DIR}/cmake/deb/copyright copyright)
string(REGEX REPLACE "\n\n" "\n.\n" notice "${notice}")
string(REGEX REPLACE "\n([^\n])" "\n \\1" notice "\n${notice}")
file(WRITE ${TM_DOC}/copyright "${copyright}Comment:${notice}")
if(GZIP_PROGRAM)
  execute_process(COMMAND ${GZIP_PROGRAM} -9nc ${PROJECT_SOURCE_DIR}/cmake/deb/changelog
                  OUTPUT_FILE ${TM_DOC}/changelog.Debian.gz)
  set(history ${TM_DOC}/changelog.Debian.gz)
endif()
foreach(pair cli:tokenmill runtime:libtokenmill${abi} dev:libtokenmill-dev)
  string(REPLACE ":" ";" pair ${pair})
  list(GET pair 0 component)
  list(GET pair 1 package)
  install(FILES ${TM_DOC}/copyright ${history} DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package}
          COMPONENT ${component})
endforeach()
include(CPack)
