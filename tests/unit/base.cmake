tm_test(base_thread_pool_test SOURCES base_thread_pool_test.cc LIBS tm_base)
tm_test(base_machine_test SOURCES base_machine_test.cc LIBS tm_base)
tm_test(base_printable_test SOURCES base_printable_test.cc LIBS tm_base)
tm_test(base_mapped_file_test SOURCES base_mapped_file_test.cc LIBS tm_base)
