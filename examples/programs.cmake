foreach(name input_ids token_in_token_out chat coroutines)
  add_executable(${name} ${CMAKE_CURRENT_LIST_DIR}/${name}.cc)
  target_link_libraries(${name} PRIVATE tokenmill Threads::Threads)
endforeach()

# The server needs Boost.Asio and Beast (headers only) of 1.79 or later: Debian 12 has them in libboost1.81-dev.
find_package(Boost 1.79 QUIET)
if(Boost_FOUND)
  add_executable(custom_server ${CMAKE_CURRENT_LIST_DIR}/custom_server.cc)
  target_link_libraries(custom_server PRIVATE tokenmill Boost::headers nlohmann_json::nlohmann_json Threads::Threads)
else()
  message(STATUS "examples/custom_server.cc is not built: Boost 1.79 or later was not found (libboost1.81-dev)")
endif()
