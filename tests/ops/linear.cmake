tm_test(linear_test SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/linear_test.cc LIBS tm_ops)
tm_test(pack_test SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/pack_test.cc LIBS tm_ops)
