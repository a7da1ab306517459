// Engines of a tiny model on cards that are not there, calls that fail, and the log's lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/fake_cuda.h"
#include "cuda/tiny_args.h"
#include "tokenmill/engine.h"

namespace tokenmill::testing {

inline constexpr int64_t kGiB = int64_t{1} << 30;

inline ServerArgs small_args(const std::string& dtype = "bfloat16") {
  ServerArgs args = args_for("llama-untied", "cuda", dtype);
  args.max_total_tokens = 1 << 12;
  args.max_running_requests = 32;
  args.chunked_prefill_size = 256;
  return args;
}

inline Request request_of(size_t prompt_tokens, int64_t new_tokens) {
  Request request;
  request.input_ids = std::vector<int32_t>(prompt_tokens, 5);
  request.sampling_params.max_new_tokens = new_tokens;
  request.sampling_params.ignore_eos = true;
  return request;
}

inline bool is_whole(const Output& output, size_t tokens) {
  return output.output_ids.size() == tokens && output.meta_info.finish_reason->type == FinishReason::Type::kLength;
}

// Errors of one call, from the nth time it is made, `times` times.
inline std::function<cudaError_t(std::string_view)> failing(std::string call, int nth, cudaError_t error,
                                                            int times = 1) {
  return [=, made = 0](std::string_view name) mutable {
    if (name != call) return cudaSuccess;
    ++made;
    return made >= nth && made < nth + times ? error : cudaSuccess;
  };
}
inline constexpr int kAlways = 1 << 30;

// What an engine logs.
struct Lines {
  std::mutex mutex;
  std::vector<std::string> all;
  LogSink sink() {
    return [this](LogLevel, const std::string& line) {
      const std::lock_guard lock(mutex);
      all.push_back(line.substr(std::min(line.size(), line.find("] ") + 2)));
    };
  }
  size_t index(const std::string& part) {  // of the first line with it
    const std::lock_guard lock(mutex);
    const auto found = std::ranges::find_if(all, [&](const std::string& line) { return line.find(part) != line.npos; });
    return static_cast<size_t>(found - all.begin());
  }
  std::string find(const std::string& part) {
    const size_t at = index(part);
    return at < all.size() ? all[at] : "";
  }
  int count(const std::string& part) {
    const std::lock_guard lock(mutex);
    return static_cast<int>(
        std::ranges::count_if(all, [&](const std::string& line) { return line.find(part) != std::string::npos; }));
  }
};

}  // namespace tokenmill::testing
