tm_test(checkpoint_test
  SOURCES checkpoint_config_test.cc checkpoint_safetensors_test.cc checkpoint_gguf_test.cc checkpoint_path_test.cc
          checkpoint_hub_test.cc
  LIBS tm_checkpoint)
