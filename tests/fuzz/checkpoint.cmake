tm_test(checkpoint_fuzz_test
  SOURCES checkpoint_fuzz_test.cc
  LIBS tm_checkpoint)
