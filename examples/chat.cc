// A chat at the terminal: each line of standard input is a turn, each answer is streamed and remembered.
//
//   chat MODEL_PATH
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "tokenmill/engine.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL_PATH\n", argv[0]);
    return 2;
  }
  try {
    tokenmill::Engine engine({.model_path = argv[1], .log_level = "warning"});
    std::vector<tokenmill::ChatMessage> messages = {{.role = "system", .content = "You are a helpful assistant."}};
    for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line);) {
      messages.push_back({.role = "user", .content = line});
      // The conversation so far is in the prefix cache: only the new turn is computed.
      tokenmill::Request request{.messages_json = tokenmill::messages_to_json(messages),
                                 .sampling_params = {.max_new_tokens = 256, .temperature = 0}};
      std::string answer;
      for (const tokenmill::Output& chunk : engine.generate_stream(request)) {
        answer += chunk.text;
        std::cout << chunk.text << std::flush;
      }
      std::cout << "\n";
      messages.push_back({.role = "assistant", .content = answer});
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
