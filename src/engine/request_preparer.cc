#include "engine/request_preparer.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/text_repr.h"
#include "text/chat_template.h"

namespace tokenmill {
namespace {

constexpr double kGreedyTemperature = 1e-6;

// Parameters above 0 stay above 0 as floats.
float positive_float(double value) { return std::max(static_cast<float>(value), std::numeric_limits<float>::min()); }

[[noreturn]] void throw_value(const std::string& message) { throw Error(ErrorKind::kValue, message); }
[[noreturn]] void throw_unsupported(const std::string& message) { throw Error(ErrorKind::kUnsupported, message); }

// As one that does not compile ends its own item of a list, so does one of a kind that is not built.
void reject_grammars(const SamplingParams& params, const std::string& rid) {
  const std::pair<const char*, bool> grammars[] = {{"json_schema", params.json_schema.has_value()},
                                                   {"regex", params.regex.has_value()},
                                                   {"ebnf", params.ebnf.has_value()},
                                                   {"structural_tag", params.structural_tag.has_value()}};
  for (const auto& [name, given] : grammars) {
    if (!given) continue;
    throw_unsupported(std::string(name) +
                      " is not built yet: this version has no grammars (structured output), which " + "request '" +
                      rid + "' asks for. Leave it out, or check the output yourself.");
  }
}

// A reply is asked for unless the caller says otherwise.
std::string chat_kwargs(const std::string& kwargs_json) {
  if (kwargs_json == "{}") return R"({"add_generation_prompt": true})";
  nlohmann::ordered_json kwargs = nlohmann::ordered_json::parse(kwargs_json, nullptr, false);
  if (!kwargs.is_object()) throw_rule("chat_kwargs_json", "a JSON object", kwargs_json);
  if (!kwargs.contains("add_generation_prompt")) kwargs["add_generation_prompt"] = true;
  return kwargs.dump();
}

std::vector<int32_t> sorted_ids(const std::vector<int64_t>& ids) {
  std::vector<int32_t> sorted(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  return sorted;
}

}  // namespace

uint64_t derive_seed(uint64_t random_seed, uint64_t number) {
  // SplitMix64 (Steele, Lea, Flood 2014) at the number-th state after the seed.
  uint64_t z = random_seed + (number + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void RequestPreparer::check(const Request& request) const {
  const int given = request.prompt.has_value() + request.input_ids.has_value() + request.messages_json.has_value();
  if (given == 0) throw_value("Either text or input_ids should be provided.");
  if (given > 1)
    throw_value("Only one of text, input_ids and messages can be provided, got " + std::to_string(given) + ".");
  request.sampling_params.validate();
  if (request.lora_path) throw_unsupported("lora_path is not built yet: this version loads no LoRA adapters.");
  if (request.input_ids) {
    if (request.input_ids->empty()) throw_value("input_ids cannot be empty.");
    for (const int32_t id : *request.input_ids) {
      require_rule(id >= 0 && id < options_.vocab_size, "input_ids",
                   "made of token ids in [0, " + std::to_string(options_.vocab_size) + ")", int64_t{id});
    }
  } else if (!options_.tokenizer) {
    throw_value(
        "The engine initialized with skip_tokenizer_init=True cannot accept text prompts. Please provide input_ids or "
        "re-initialize the engine with skip_tokenizer_init=False.");
  }
  check_token_ids(request.sampling_params);
  check_logprobs(request);
  if (request.rid && request.rid->empty()) throw_rule("rid", "None or a non-empty string", "''");
}

void RequestPreparer::check_token_ids(const SamplingParams& params) const {
  const std::string range = "in [0, " + std::to_string(options_.vocab_size) + ")";
  const auto in_vocabulary = [&](int64_t id) { return id >= 0 && id < options_.vocab_size; };
  for (const int64_t id : params.stop_token_ids) {
    require_rule(in_vocabulary(id), "stop_token_ids", "made of token ids " + range, id);
  }
  for (const auto& [id, bias] : params.logit_bias) {
    require_rule(in_vocabulary(id), "logit_bias", "keyed by token ids " + range, id);
  }
  if (params.allowed_token_ids) {
    for (const int64_t id : *params.allowed_token_ids) {
      require_rule(in_vocabulary(id), "allowed_token_ids", "made of token ids " + range, id);
    }
  }
  if (options_.tokenizer) return;
  const std::pair<const char*, bool> needs_text[] = {{"stop", !params.stop.empty()},
                                                     {"stop_regex", !params.stop_regex.empty()},
                                                     {"bad_words", !params.bad_words.empty()}};
  for (const auto& [name, set] : needs_text) {
    if (set) {
      throw_value(std::string(name) +
                  " needs a tokenizer, and the engine was initialized with skip_tokenizer_init=True.");
    }
  }
}

void RequestPreparer::check_logprobs(const Request& request) const {
  require_rule(request.top_logprobs_num >= 0 && request.top_logprobs_num <= options_.vocab_size, "top_logprobs_num",
               "in [0, " + std::to_string(options_.vocab_size) + "]", request.top_logprobs_num);
  for (const int64_t id : request.token_ids_logprob) {
    if (id >= 0 && id < options_.vocab_size) continue;
    throw_value("token_ids_logprob contains out-of-vocabulary token id " + std::to_string(id) +
                "; valid range is [0, " + std::to_string(options_.vocab_size) + ").");
  }
  require_rule(request.logprob_start_len.value_or(0) >= 0, "logprob_start_len", "None or at least 0",
               request.logprob_start_len);
}

std::shared_ptr<RequestState> RequestPreparer::make_state(const Request& request, uint64_t number) const {
  const SamplingParams& params = request.sampling_params;
  auto state = std::make_shared<RequestState>();
  state->number = number;
  state->rid = request.rid.value_or("");
  state->num_samples = params.n;
  state->stream = request.stream;
  state->return_prompt_token_ids = request.return_prompt_token_ids;
  state->no_stop_trim = params.no_stop_trim;
  state->want_logprob = request.return_logprob;
  state->stream_interval = params.stream_interval.value_or(options_.stream_interval);
  state->text_options = {.skip_special_tokens = params.skip_special_tokens};
  return state;
}

std::string RequestPreparer::apply_chat_template(const std::string& messages_json,
                                                 const std::string& kwargs_json) const {
  const Tokenizer& tokenizer = *options_.tokenizer;
  const std::string& text = options_.chat_template.empty() ? tokenizer.chat_template() : options_.chat_template;
  if (text.empty()) {
    throw_value("This model has no chat template. Give one with chat_template, or send a plain prompt.");
  }
  return render_chat_template(text, {.messages_json = messages_json,
                                     .kwargs_json = kwargs_json,
                                     .bos_token = tokenizer.bos_token(),
                                     .eos_token = tokenizer.eos_token(),
                                     .frozen_now = {}});
}

std::vector<int32_t> RequestPreparer::tokenize(const Request& request) const {
  if (request.input_ids) return *request.input_ids;
  std::vector<int32_t> ids = request.prompt ? options_.tokenizer->encode_prompt(*request.prompt)
                                            : options_.tokenizer->encode_prompt(apply_chat_template(
                                                  *request.messages_json, chat_kwargs(request.chat_kwargs_json)));
  if (ids.empty()) throw_value("input_ids cannot be empty.");
  // A tokenizer may know more tokens than the model has embeddings for.
  for (const int32_t id : ids) {
    if (id < 0 || id >= options_.vocab_size) {
      throw_value("The prompt contains token id " + std::to_string(id) + ", but the model's vocabulary is [0, " +
                  std::to_string(options_.vocab_size) + "): tokenizer and model do not belong together.");
    }
  }
  return ids;
}

std::vector<SequenceSpec> RequestPreparer::prepare(const Request& request, RequestState& state) const {
  const SamplingParams& params = request.sampling_params;
  reject_grammars(params, state.rid);
  std::vector<int32_t> ids = tokenize(request);
  const int64_t context = options_.context_length;
  if (static_cast<int64_t>(ids.size()) > context) {
    if (!options_.allow_auto_truncate) {
      throw_value("The input (" + std::to_string(ids.size()) + " tokens) is longer than the model's context length (" +
                  std::to_string(context) + " tokens).");
    }
    // One place stays for an output token.
    ids.resize(static_cast<size_t>(std::max<int64_t>(context - 1, 1)));
  }
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  if (request.return_logprob && request.logprob_start_len.value_or(prompt_tokens) < prompt_tokens) {
    throw_unsupported(
        "logprob_start_len below the prompt's length is not built yet: this version reports logprobs of output tokens "
        "only (logprob_start_len=None).");
  }
  state.prompt = std::make_shared<const std::vector<int32_t>>(std::move(ids));

  SequenceSpec spec;
  spec.group = params.n > 1 ? state.number + 1 : 0;  // 0: none
  spec.prompt = state.prompt;
  spec.priority = request.priority;
  spec.cache_namespace = request.cache_salt.value_or("");
  spec.pin = state.pin;
  spec.max_new_tokens = std::min(params.max_new_tokens.value_or(context), context - prompt_tokens);
  spec.min_new_tokens = std::min(params.min_new_tokens, spec.max_new_tokens);
  spec.temperature = params.temperature < kGreedyTemperature ? 0.0f : static_cast<float>(params.temperature);
  spec.top_p = positive_float(params.top_p);
  spec.min_p = static_cast<float>(params.min_p);
  // A top_k of the whole vocabulary or more cuts nothing.
  spec.top_k = params.top_k < 0 || params.top_k >= options_.vocab_size ? 0 : static_cast<int32_t>(params.top_k);
  spec.frequency_penalty = static_cast<float>(params.frequency_penalty);
  spec.presence_penalty = static_cast<float>(params.presence_penalty);
  spec.repetition_penalty = positive_float(params.repetition_penalty);
  spec.seed = params.sampling_seed.value_or(derive_seed(options_.random_seed, state.number));
  if (!params.ignore_eos) {
    std::vector<int64_t> stop_ids = params.stop_token_ids;
    stop_ids.insert(stop_ids.end(), options_.eos_token_ids.begin(), options_.eos_token_ids.end());
    spec.stop_ids = sorted_ids(stop_ids);
  }
  if (!params.stop.empty() || !params.stop_regex.empty()) {
    spec.stop_patterns = std::make_shared<const StopPatterns>(params.stop, params.stop_regex);
  }
  spec.no_stop_trim = params.no_stop_trim;
  for (const auto& [id, bias] : params.logit_bias) {
    // Bounded, so that no logit becomes infinite, divided by the smallest temperature either.
    spec.logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(std::clamp(bias, -1e30, 1e30)));
  }
  fill_bans(params, spec);
  if (params.allowed_token_ids) spec.allowed_ids = sorted_ids(*params.allowed_token_ids);
  spec.logit_edit = params.custom_logit_processor;
  spec.want_logprob = request.return_logprob;
  if (request.return_logprob) {
    spec.top_logprobs = static_cast<int32_t>(request.top_logprobs_num);
    spec.logprob_ids.assign(request.token_ids_logprob.begin(), request.token_ids_logprob.end());
  }

  std::vector<SequenceSpec> specs(static_cast<size_t>(params.n), spec);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].id = i;
    specs[i].sample_index = static_cast<uint32_t>(i);
  }
  return specs;
}

void RequestPreparer::fill_bans(const SamplingParams& params, SequenceSpec& spec) const {
  // A word is banned as it stands at the start of a text and after a space.
  for (const std::string& word : params.bad_words) {
    std::vector<std::vector<int32_t>> spellings{options_.tokenizer->encode(word, false)};
    if (word.front() != ' ') spellings.push_back(options_.tokenizer->encode(" " + word, false));
    for (std::vector<int32_t>& ids : spellings) {
      if (ids.size() == 1) {
        spec.banned_ids.push_back(ids.front());
      } else if (!ids.empty()) {
        spec.banned_sequences.push_back(std::move(ids));
      }
    }
  }
  std::sort(spec.banned_ids.begin(), spec.banned_ids.end());
  spec.banned_ids.erase(std::unique(spec.banned_ids.begin(), spec.banned_ids.end()), spec.banned_ids.end());
}

}  // namespace tokenmill
