tm_test(ops_attention_test SOURCES attention_test.cc LIBS tm_ops)
tm_test(ops_sample_test SOURCES sample_test.cc LIBS tm_ops)
tm_test(ops_rows_test SOURCES norm_test.cc rope_test.cc kv_test.cc LIBS tm_ops)
