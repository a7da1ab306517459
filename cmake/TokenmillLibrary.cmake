# The two libraries that users link, made of the same objects: libtokenmill.so and libtokenmill.a, each with the Rust
# library inside. What they need besides is in TM_EXTERNAL_LIBS (found by walking what the modules link).
set(todo tm_engine)
set(TM_MODULES)
set(TM_EXTERNAL_LIBS)
while(todo)
  list(POP_FRONT todo library)
  string(REGEX REPLACE "^\\$<LINK_ONLY:(.*)>$" "\\1" library "${library}")
  if(library STREQUAL "tm_text_shim" OR library IN_LIST TM_MODULES OR library MATCHES "^::@")
    continue()
  endif()
  if(library MATCHES "^tm_")
    list(APPEND TM_MODULES ${library})
    get_target_property(libraries ${library} INTERFACE_LINK_LIBRARIES)
    if(libraries)
      list(APPEND todo ${libraries})
    endif()
  elseif(NOT library STREQUAL "nlohmann_json::nlohmann_json")  # headers only
    list(APPEND TM_EXTERNAL_LIBS ${library})
  endif()
endwhile()
list(REMOVE_DUPLICATES TM_EXTERNAL_LIBS)

set(objects)
foreach(module ${TM_MODULES})
  get_target_property(type ${module} TYPE)
  if(type STREQUAL "STATIC_LIBRARY")
    list(APPEND objects $<TARGET_OBJECTS:${module}>)
  endif()
endforeach()

# Before 1.0 a minor version may change the ABI.
add_library(tokenmill_shared SHARED ${objects})
set_target_properties(tokenmill_shared PROPERTIES
  OUTPUT_NAME tokenmill
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LINKER_LANGUAGE CXX
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/libtokenmill.map
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
target_link_libraries(tokenmill_shared PRIVATE tm_text_shim ${TM_EXTERNAL_LIBS})
target_link_options(tokenmill_shared PRIVATE LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/libtokenmill.map
                    LINKER:--no-undefined LINKER:--exclude-libs,ALL LINKER:--gc-sections)
target_include_directories(tokenmill_shared INTERFACE ${PROJECT_SOURCE_DIR}/include)
target_compile_features(tokenmill_shared INTERFACE cxx_std_20)

# One archive: users need not know of the modules.
add_library(tokenmill_objects STATIC ${objects})
set_target_properties(tokenmill_objects PROPERTIES LINKER_LANGUAGE CXX ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(TM_STATIC_LIBRARY ${PROJECT_BINARY_DIR}/lib/libtokenmill.a)
get_target_property(TM_SHIM_LIB tm_text_shim IMPORTED_LOCATION)
set(archives $<TARGET_FILE:tokenmill_objects> ${TM_SHIM_LIB})
# The CUDA runtime is inside, too: who links the library needs no toolkit.
set(TM_STATIC_LINK_LIBS ${TM_EXTERNAL_LIBS})
if(CUDA::cudart_static IN_LIST TM_STATIC_LINK_LIBS)
  list(REMOVE_ITEM TM_STATIC_LINK_LIBS CUDA::cudart_static)
  list(APPEND TM_STATIC_LINK_LIBS Threads::Threads dl rt)
  list(REMOVE_DUPLICATES TM_STATIC_LINK_LIBS)
  list(APPEND archives $<TARGET_FILE:CUDA::cudart_static>)
endif()
add_custom_command(
  OUTPUT ${TM_STATIC_LIBRARY}
  COMMAND ${CMAKE_COMMAND} -DAR=${CMAKE_AR} -DSTRIP=${CMAKE_STRIP} -DOUTPUT=${TM_STATIC_LIBRARY}
          "-DARCHIVES=${archives}" -P ${PROJECT_SOURCE_DIR}/cmake/MergeArchives.cmake
  DEPENDS tokenmill_objects ${TM_SHIM_LIB} ${PROJECT_SOURCE_DIR}/cmake/MergeArchives.cmake
  VERBATIM)
add_custom_target(tokenmill_static ALL DEPENDS ${TM_STATIC_LIBRARY})
