# cmake --install: components runtime (the shared library), dev (headers, both libraries, CMake and pkg-config files),
# cli (the program, its manual page and completions). docs/cpp.md shows how each is used.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS tokenmill_shared
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT dev)
install(FILES ${TM_STATIC_LIBRARY} DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tokenmill DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev
        FILES_MATCHING PATTERN "*.h")
if(TARGET tokenmill_cli)
  install(TARGETS tokenmill_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT cli)
  install(FILES ${TM_SHARE}/tokenmill.1.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT cli)
  set(share ${CMAKE_INSTALL_DATADIR})
  install(FILES ${TM_SHARE}/completion.bash DESTINATION ${share}/bash-completion/completions RENAME tokenmill
          COMPONENT cli)
  install(FILES ${TM_SHARE}/completion.zsh DESTINATION ${share}/zsh/vendor-completions RENAME _tokenmill COMPONENT cli)
  install(FILES ${TM_SHARE}/completion.fish DESTINATION ${share}/fish/vendor_completions.d RENAME tokenmill.fish
          COMPONENT cli)
endif()

# What a program that links libtokenmill.a needs besides: as CMake targets with the packages that define them, and as
# flags for pkg-config.
set(TM_STATIC_DEPENDENCIES)
set(TM_PC_LIBS)
foreach(library ${TM_STATIC_LINK_LIBS})
  if(library STREQUAL "Threads::Threads")
    list(APPEND TM_STATIC_DEPENDENCIES Threads)
    list(APPEND TM_PC_LIBS -pthread)
  elseif(library MATCHES "::")
    message(FATAL_ERROR "cmake/TokenmillInstall.cmake does not know which package defines ${library}; add it here")
  else()
    list(APPEND TM_PC_LIBS -l${library})
  endif()
endforeach()
list(REMOVE_DUPLICATES TM_STATIC_DEPENDENCIES)
list(JOIN TM_PC_LIBS " " TM_PC_LIBS)

set(TM_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/tokenmill)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/tokenmillConfig.cmake.in
  ${PROJECT_BINARY_DIR}/tokenmillConfig.cmake INSTALL_DESTINATION ${TM_CMAKE_DIR}
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tokenmillConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tokenmillConfig.cmake ${PROJECT_BINARY_DIR}/tokenmillConfigVersion.cmake
        DESTINATION ${TM_CMAKE_DIR} COMPONENT dev)

# The file finds its own prefix, so an installed tree may be moved.
file(RELATIVE_PATH TM_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${PROJECT_SOURCE_DIR}/cmake/tokenmill.pc.in ${PROJECT_BINARY_DIR}/tokenmill.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/tokenmill.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
