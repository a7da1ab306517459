add_executable(offline_batch ${CMAKE_CURRENT_LIST_DIR}/offline_batch.cc)
target_link_libraries(offline_batch PRIVATE tokenmill Threads::Threads)
