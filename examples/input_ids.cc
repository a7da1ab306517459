// A prompt as token ids: tokenised by the engine's tokenizer, changed by the caller, and answered as text.
//
//   input_ids MODEL_PATH [PROMPT]
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tokenmill/engine.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL_PATH [PROMPT]\n", argv[0]);
    return 2;
  }
  const std::string prompt = argc > 2 ? argv[2] : "The capital of France is";
  try {
    tokenmill::Engine engine({.model_path = argv[1], .log_level = "warning"});

    const std::vector<std::int32_t> ids = engine.encode_text(prompt);
    std::printf("Prompt:");
    for (const std::int32_t id : ids) std::printf(" %d", id);

    const auto output = engine.generate({.input_ids = ids, .sampling_params = {.temperature = 0}}).at(0);
    std::printf("\nText:%s\n", output.text.c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
