# tm_checkpoint with its downloads. libcurl is loaded when it is first needed (src/checkpoint/hub/http_client.cc), so only
# its headers are: nothing links to it.
find_path(TOKENMILL_CURL_INCLUDE curl/curl.h)
if(NOT TOKENMILL_CURL_INCLUDE)
  message(FATAL_ERROR "curl/curl.h was not found. Run tools/setup, or install libcurl's headers (Debian: libcurl4-openssl-dev).")
endif()
tm_module(checkpoint FOLDERS hub DEPS base text LIBS Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(tm_checkpoint PRIVATE ${TOKENMILL_CURL_INCLUDE})
