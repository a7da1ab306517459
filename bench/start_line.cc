// From the start of the process to the first token: each stage of an engine's start, in seconds, on one model.
//
//   start_line MODEL [device] [prompt tokens]     (128 random ids; no tokenizer is loaded)
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tokenmill/engine.h"

namespace tokenmill {
namespace {

// Seconds since the kernel made this process, to a hundredth.
double process_seconds() {
  std::ifstream file("/proc/self/stat");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // the name may hold blanks
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double since_boot = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
  return since_boot - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

void run(const std::string& model, const std::string& device, int64_t prompt_tokens) {
  const double entered = process_seconds();
  ServerArgs args;
  args.model_path = model;
  if (!device.empty()) args.device = device;
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.random_seed = 1;
  Engine engine(args);
  const double ready = process_seconds();

  std::mt19937_64 random(1);
  const auto request = [&](int64_t new_tokens) {
    Request made;
    made.input_ids.emplace();
    for (int64_t i = 0; i < prompt_tokens; ++i) {
      made.input_ids->push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(engine.vocab_size())));
    }
    made.sampling_params.max_new_tokens = new_tokens;
    made.sampling_params.ignore_eos = true;
    return made;
  };
  engine.generate(request(1));
  const double first = process_seconds();
  engine.generate(request(1));
  const double second = process_seconds();

  const auto info = nlohmann::json::parse(engine.server_info_json());
  std::printf("%s on %s: %lld KV tokens\n", info.at("model").at("architecture").get<std::string>().c_str(),
              info.at("backend").get<std::string>().c_str(), info.at("max_total_num_tokens").get<long long>());
  std::printf("%-44s %8.2f\n", "process to main()", entered);
  for (const auto& [name, seconds] : info.at("startup").items()) {
    if (name != "total_s") std::printf("  %-42s %8.3f\n", name.c_str(), seconds.get<double>());
  }
  std::printf("%-44s %8.2f\n", "process to ready", ready);
  std::printf("%-44s %8.2f\n", "process to the first token", first);
  std::printf("%-44s %8.3f\n", "a first token after that", second - first);
}

}  // namespace
}  // namespace tokenmill

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: start_line MODEL [device] [prompt tokens]\n");
    return 2;
  }
  try {
    tokenmill::run(argv[1], argc > 2 ? argv[2] : "", argc > 3 ? std::atoll(argv[3]) : 128);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "start_line: %s\n", error.what());
    return 1;
  }
}
