// The kinds that run a model.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "models/packing.h"
#include "ops/backend_registry.h"
#include "tokenmill/error.h"
#include "verify/kinds.h"
#include "verify/open_model.h"

namespace tokenmill {

namespace {

constexpr size_t kGenTokens = 64, kTinyTokens = 16;
constexpr size_t kSequencesMax = 8;  // that decode together

// A prompt and what the model makes of it. Logits arrive row by row, so only what is kept takes memory.
struct Run {
  std::vector<int32_t> prompt;
  std::vector<float> prompt_logprobs;  // of prompt[1..]
  std::vector<int32_t> argmax_per_pos;
  std::vector<float> last_logits, last_hidden;
  std::vector<int32_t> generated;
  std::vector<float> logprobs;  // of `generated`
  std::vector<float> forced_logprobs;
  std::vector<int32_t> forced_argmax;
};

void prefill(Probe& probe, int64_t sequence, Run& run) {
  probe.truncate(sequence, 0);
  run.last_hidden = probe.feed(sequence, run.prompt, [&](size_t i, std::span<const float> logits) {
    run.argmax_per_pos.push_back(argmax(logits));
    if (i + 1 < run.prompt.size()) {
      run.prompt_logprobs.push_back(logprob_of(logits, run.prompt[i + 1]));
    } else {
      run.last_logits.assign(logits.begin(), logits.end());
    }
  });
}

// Teacher forcing: `ids` follow the prompt whatever the model would say. Leaves the sequence at its prompt.
void force(Probe& probe, int64_t sequence, Run& run, std::span<const int32_t> ids) {
  const int64_t length = probe.length(sequence);
  const auto keep = [&](std::span<const float> logits, int32_t id) {
    run.forced_logprobs.push_back(logprob_of(logits, id));
    run.forced_argmax.push_back(argmax(logits));
  };
  keep(run.last_logits, ids[0]);
  if (ids.size() > 1) {
    probe.feed(sequence, ids.first(ids.size() - 1),
               [&](size_t i, std::span<const float> logits) { keep(logits, ids[i + 1]); });
  }
  probe.truncate(sequence, length);
}

// Greedy continuation of all runs, sequence i holding runs[i]'s prompt, in common steps.
void generate(Probe& probe, std::span<Run> runs, size_t tokens) {
  const auto keep = [](Run& run, std::span<const float> logits) {
    run.generated.push_back(argmax(logits));
    run.logprobs.push_back(logprob_of(logits, run.generated.back()));
  };
  for (Run& run : runs) keep(run, run.last_logits);
  for (size_t step = 1; step < tokens; ++step) {
    std::vector<Probe::Next> next;
    for (size_t i = 0; i < runs.size(); ++i) next.push_back({static_cast<int64_t>(i), runs[i].generated.back()});
    probe.decode(next, [&](size_t i, std::span<const float> logits) { keep(runs[i], logits); });
  }
}

// null for the first id, then one a following id.
Json with_leading_null(const std::vector<float>& logprobs) {
  Json list = Json::array({nullptr});
  for (const float logprob : logprobs) list.push_back(logprob);
  return list;
}

void check_prompt(const std::vector<int32_t>& ids, const ModelConfig& config, size_t new_tokens,
                  const std::string& where) {
  if (ids.empty()) throw Error(ErrorKind::kValue, where + ": the prompt has no ids.");
  for (const int32_t id : ids) {
    if (id >= 0 && id < config.vocab_size) continue;
    throw Error(ErrorKind::kValue, where + ": id " + std::to_string(id) + " is out of the vocabulary [0, " +
                                       std::to_string(config.vocab_size) + ").");
  }
  const int64_t length = static_cast<int64_t>(ids.size() + new_tokens);
  if (length > config.max_position) {
    throw Error(ErrorKind::kValue, where + ": the input (" + std::to_string(ids.size()) + " tokens) and " +
                                       std::to_string(new_tokens) + " new ones are longer than the model's context (" +
                                       std::to_string(config.max_position) + " tokens).");
  }
}

size_t longest(const std::vector<Run>& runs) {
  size_t tokens = 0;
  for (const Run& run : runs) tokens = std::max(tokens, run.prompt.size());
  return tokens;
}

void tiny_model(const std::filesystem::path& folder, const std::string& dtype, const std::string& device,
                JsonLinesWriter& out) {
  const auto checkpoint = Checkpoint::open(folder.string(), {});
  const std::string golden_path = (folder / "golden.json").string();
  const Json golden = read_json_file(golden_path);
  std::vector<Run> runs;
  for (const Json& prompt : golden.at("prompts")) {
    runs.emplace_back().prompt = prompt.at("prompt_ids").get<std::vector<int32_t>>();
    check_prompt(runs.back().prompt, checkpoint->config(), kTinyTokens, golden_path);
  }
  const ProbeOptions options{.num_sequences = 1, .tokens_max = static_cast<int64_t>(longest(runs) + kTinyTokens)};
  const auto probe = open_probe(*checkpoint, dtype, device, options);
  for (size_t i = 0; i < runs.size(); ++i) {
    Run& run = runs[i];
    prefill(*probe, 0, run);
    generate(*probe, std::span(&run, 1), kTinyTokens);
    out.write({{"model", folder.filename().string()},
               {"prompt", i},
               {"greedy16", run.generated},
               {"last_logits", run.last_logits},
               {"argmax_per_pos", run.argmax_per_pos},
               {"prompt_logprobs", with_leading_null(run.prompt_logprobs)},
               {"last_hidden", run.last_hidden}});
  }
}

}  // namespace

std::unique_ptr<Probe> open_probe(const Checkpoint& checkpoint, const std::string& dtype, const std::string& device,
                                  const ProbeOptions& options) {
  std::unique_ptr<Backend> backend = make_backend(device.empty() ? default_device() : device, CpuOptions{});
  const Packing packing = choose_packing(dtype, checkpoint.config(), *backend);
  std::unique_ptr<Model> model = load_model(checkpoint, *backend, packing, nullptr);
  return std::make_unique<Probe>(std::move(backend), std::move(model), options);
}

void verify_gen(const VerifyOptions& options, JsonLinesWriter& out) {
  const auto checkpoint = Checkpoint::open(options.model_path, {});
  const auto tokenizer = open_tokenizer(checkpoint->tokenizer_source());
  const std::vector<Json> golden = read_json_lines(options.in);
  std::vector<Run> runs(golden.size());
  for (size_t i = 0; i < golden.size(); ++i) {
    runs[i].prompt = tokenizer->encode_prompt(golden[i].at("prompt").get<std::string>());
    check_prompt(runs[i].prompt, checkpoint->config(), kGenTokens,
                 options.in + ": " + golden[i].at("id").get<std::string>());
  }
  const size_t group = std::min(kSequencesMax, std::max<size_t>(runs.size(), 1));
  const auto probe = open_probe(
      *checkpoint, options.dtype.empty() ? "auto" : options.dtype, options.device,
      {.num_sequences = static_cast<int64_t>(group), .tokens_max = static_cast<int64_t>(longest(runs) + kGenTokens)});
  for (size_t first = 0; first < runs.size(); first += group) {
    const std::span<Run> together = std::span(runs).subspan(first, std::min(group, runs.size() - first));
    for (size_t i = 0; i < together.size(); ++i) {
      prefill(*probe, static_cast<int64_t>(i), together[i]);
      const auto forced = golden[first + i].at("gen_ids").get<std::vector<int32_t>>();
      check_prompt(forced, checkpoint->config(), together[i].prompt.size(), options.in + ": gen_ids");
      force(*probe, static_cast<int64_t>(i), together[i], std::span(forced).first(std::min(forced.size(), kGenTokens)));
    }
    generate(*probe, together, kGenTokens);
    for (size_t i = 0; i < together.size(); ++i) {
      Run run = std::exchange(together[i], Run{});
      out.write({{"id", golden[first + i].at("id")},
                 {"prompt_ids", run.prompt},
                 {"gen_ids", run.generated},
                 {"logprobs", run.logprobs},
                 {"prompt_logprobs", with_leading_null(run.prompt_logprobs)},
                 {"last_hidden", run.last_hidden},
                 {"forced_logprobs", run.forced_logprobs},
                 {"forced_argmax", run.forced_argmax}});
    }
  }
}

int verify_tiny(const VerifyOptions& options, JsonLinesWriter& out, std::ostream& err) {
  std::filesystem::path root = std::filesystem::absolute(options.in).lexically_normal();
  if (root.filename().empty()) root = root.parent_path();  // "models/"
  const auto is_model = [](const std::filesystem::path& folder) {
    return std::filesystem::exists(folder / "golden.json") && std::filesystem::exists(folder / "config.json");
  };
  std::vector<std::filesystem::path> folders;
  if (is_model(root)) {
    folders.push_back(root);
  } else if (std::filesystem::is_directory(root)) {
    for (const auto& entry : std::filesystem::directory_iterator(root)) {
      if (is_model(entry.path())) folders.push_back(entry.path());
    }
  }
  if (folders.empty()) {
    throw Error(ErrorKind::kValue, options.in + ": no folder with config.json and golden.json was found.");
  }
  std::sort(folders.begin(), folders.end());
  int skipped = 0;
  for (const std::filesystem::path& folder : folders) {
    try {
      tiny_model(folder, options.dtype.empty() ? "float32" : options.dtype, options.device, out);
    } catch (const Error& error) {
      ++skipped;
      err << "skipped " << folder.filename().string() << ": " << error.what() << "\n";
    }
  }
  return skipped;
}

}  // namespace tokenmill
