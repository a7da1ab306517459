tm_test(cache_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/cache_allocator_test.cc ${CMAKE_CURRENT_LIST_DIR}/cache_radix_test.cc
        ${CMAKE_CURRENT_LIST_DIR}/cache_window_test.cc ${CMAKE_CURRENT_LIST_DIR}/cache_watch_test.cc
        ${CMAKE_CURRENT_LIST_DIR}/ordered_chunks_test.cc
        LIBS tm_cache)
