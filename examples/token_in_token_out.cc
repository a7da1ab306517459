// Token ids in, token ids out: no tokenizer is loaded, as in training loops that keep their own.
//
//   token_in_token_out MODEL_PATH ID...
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "tokenmill/engine.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL_PATH ID...\n", argv[0]);
    return 2;
  }
  std::vector<std::int32_t> ids;
  for (int i = 2; i < argc; ++i) ids.push_back(static_cast<std::int32_t>(std::strtol(argv[i], nullptr, 10)));
  try {
    tokenmill::Engine engine({.model_path = argv[1], .skip_tokenizer_init = true, .log_level = "warning"});

    tokenmill::Request request{.input_ids = ids, .sampling_params = {.max_new_tokens = 16, .temperature = 0}};
    request.return_logprob = true;
    const tokenmill::Output output = engine.generate(request).at(0);
    for (const tokenmill::TokenLogprob& token : output.meta_info.output_token_logprobs) {
      std::printf("%d %.4f\n", token.token_id, static_cast<double>(token.logprob.value_or(0)));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
