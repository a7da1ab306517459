#include "scenarios/script.h"

#include <functional>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "scenarios/shadow_device.h"

namespace tokenmill::testing {
namespace {

using Kind = ScriptOp::Kind;

template <class T>
std::string list_text(const std::vector<T>& values) {
  std::string text;
  for (const T value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return text;
}

template <class T>
std::vector<T> list_from(const std::string& text) {
  std::vector<T> values;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) values.push_back(static_cast<T>(std::stoll(part)));
  return values;
}

class Player {
 public:
  Player(const Script& script, bool check_integrity)
      : script_(script),
        check_integrity_(check_integrity),
        device_(script.options.num_blocks, script.options.page_size, script.vocab_size, script.options.window,
                script.options.window_blocks) {
    SchedulerOptions options = script.options;
    options.now_seconds = [this] { return clock_; };
    options.fail_acquire = [this] {
      const uint64_t ordinal = acquires_++;
      return faults_ && std::find(faults_->begin(), faults_->end(), ordinal) != faults_->end();
    };
    options.log_info = nullptr;
    scheduler_ = std::make_unique<Scheduler>(options);
  }

  void play() {
    for (const ScriptOp& op : script_.ops) play(op);
    commit_all();
    for (int step = 0; scheduler_->has_work(); ++step) {
      if (step > 20000) throw std::runtime_error("does not come to an end");
      schedule({});
      commit({});
    }
    for (uint64_t pin = 1; pin < 10000; ++pin) scheduler_->unpin(pin);
    commit_all();
    if (!scheduler_->flush_cache()) throw std::runtime_error("the cache was not flushed");
    const SchedulerStats stats = scheduler_->stats();
    if (stats.blocks_free != stats.blocks_total) throw std::runtime_error("blocks are lost");
    if (stats.window_blocks_free != stats.window_blocks_total) throw std::runtime_error("window blocks are lost");
  }

 private:
  void play(const ScriptOp& op) {
    switch (op.kind) {
      case Kind::kSubmit:
        for (const SequenceSpec& spec : op.unit) live_[spec.id] = {expected_output(spec, script_.vocab_size), 0};
        return scheduler_->add(op.unit);
      case Kind::kSchedule:
        commit_all();
        return schedule(op.numbers);
      case Kind::kAhead:
        return ahead(op.numbers);
      case Kind::kCommit:
        return commit(op.numbers);
      case Kind::kFail:
        if (ahead_ != nullptr) commit({});
        if (batch_ == nullptr) return;
        device_.spoil(*batch_);
        scheduler_->fail(std::exchange(batch_, nullptr)->step, "the device failed");
        return check();
      case Kind::kAbort:
        scheduler_->abort(op.numbers.at(0), "aborted");
        return;
      case Kind::kUnpin:
        return scheduler_->unpin(op.numbers.at(0));
    }
  }

  void schedule(const std::vector<uint64_t>& faults) {
    if (!std::exchange(ahead_missed_, false)) clock_ += 1;
    plan(faults, [&] { batch_ = scheduler_->schedule(); });
    if (batch_ == nullptr) return check();
    device_.launch(*batch_);
  }

  void ahead(const std::vector<uint64_t>& faults) {
    if (batch_ == nullptr || ahead_ != nullptr) return;
    sample();
    clock_ += 1;
    plan(faults, [&] { ahead_ = scheduler_->schedule_ahead(); });
    ahead_missed_ = ahead_ == nullptr;
    if (ahead_ != nullptr) device_.launch(*ahead_);
  }

  template <class Plan>
  void plan(const std::vector<uint64_t>& faults, Plan how) {
    acquires_ = 0;
    faults_ = &faults;
    how();
    faults_ = nullptr;
    if (check_integrity_) scheduler_->check_integrity();
  }

  void sample() {
    if (!result_) result_ = device_.sample(*batch_);
  }

  void commit(const std::vector<uint64_t>& invalid) {
    if (batch_ == nullptr) return;
    sample();
    for (size_t i = 0; i < result_->sampled.size(); ++i) {
      const uint64_t id = batch_->rows[batch_->sampling_rows[i]].sequence_id;
      if (std::find(invalid.begin(), invalid.end(), id) == invalid.end()) continue;
      result_->sampled[i] = {};
      result_->sampled[i].invalid = true;
    }
    scheduler_->commit(*result_);
    result_.reset();
    batch_ = std::exchange(ahead_, nullptr);
    check();
  }

  void commit_all() {
    while (batch_ != nullptr) commit({});
  }

  void check() {
    if (check_integrity_) scheduler_->check_integrity();
    for (const SequenceEvent& event : scheduler_->take_events()) {
      const std::string who = "sequence " + std::to_string(event.sequence_id);
      const auto found = live_.find(event.sequence_id);
      if (found == live_.end()) throw std::runtime_error(who + " has ended already");
      auto& [expected, received] = found->second;
      for (const SampledToken& sampled : event.tokens) {
        if (received >= expected.size()) throw std::runtime_error(who + " goes on after its end");
        if (sampled.token != expected[received++]) throw std::runtime_error(who + " has a wrong token");
      }
      if (!event.finish) continue;
      if (event.finish->type != FinishReason::Type::kAbort && received != expected.size()) {
        throw std::runtime_error(who + " ended early");
      }
      live_.erase(found);
    }
    if (live_.empty() == scheduler_->has_work()) throw std::runtime_error("has_work is wrong");
  }

  const Script& script_;
  bool check_integrity_;
  ShadowDevice device_;
  std::unique_ptr<Scheduler> scheduler_;
  const Batch *batch_ = nullptr, *ahead_ = nullptr;  // in flight
  std::optional<StepResult> result_;                 // of batch_
  bool ahead_missed_ = false;
  std::map<uint64_t, std::pair<std::vector<int32_t>, size_t>> live_;
  const std::vector<uint64_t>* faults_ = nullptr;
  uint64_t acquires_ = 0;
  double clock_ = 0;
};

// The fields of a sequence and of the options that a script keeps: name, text of the value ("": the default), reading.
struct SpecField {
  const char* name;
  std::function<std::string(const SequenceSpec&)> get;
  std::function<void(SequenceSpec&, const std::string&)> set;
};

template <class T>
SpecField number(const char* name, T SequenceSpec::* member) {
  return {
      name,
      [member](const SequenceSpec& spec) { return spec.*member == T() ? std::string() : std::to_string(spec.*member); },
      [member](SequenceSpec& spec, const std::string& text) { spec.*member = static_cast<T>(std::stod(text)); }};
}
SpecField ids(const char* name, std::vector<int32_t> SequenceSpec::* member) {
  return {name, [member](const SequenceSpec& spec) { return list_text(spec.*member); },
          [member](SequenceSpec& spec, const std::string& text) { spec.*member = list_from<int32_t>(text); }};
}

const std::vector<SpecField>& spec_fields() {
  static const std::vector<SpecField> fields = {
      number("id", &SequenceSpec::id),
      {"prompt", [](const SequenceSpec& spec) { return list_text(*spec.prompt); },
       [](SequenceSpec& spec, const std::string& text) {
         spec.prompt = std::make_shared<std::vector<int32_t>>(list_from<int32_t>(text));
       }},
      {"new", [](const SequenceSpec& spec) { return std::to_string(spec.max_new_tokens); },
       [](SequenceSpec& spec, const std::string& text) { spec.max_new_tokens = std::stoll(text); }},
      number("min", &SequenceSpec::min_new_tokens),
      number("group", &SequenceSpec::group),
      number("sample", &SequenceSpec::sample_index),
      number("seed", &SequenceSpec::seed),
      number("priority", &SequenceSpec::priority),
      {"pin",
       [](const SequenceSpec& spec) { return spec.pin.number == 0 ? std::string() : std::to_string(spec.pin.number); },
       [](SequenceSpec& spec, const std::string& text) { spec.pin.number = std::stoull(text); }},
      number("presence", &SequenceSpec::presence_penalty),
      {"namespace", [](const SequenceSpec& spec) { return spec.cache_namespace; },
       [](SequenceSpec& spec, const std::string& text) { spec.cache_namespace = text; }},
      ids("stop", &SequenceSpec::stop_ids),
      ids("ban", &SequenceSpec::banned_ids),
      {"words",
       [](const SequenceSpec& spec) {
         std::string text;
         for (const auto& word : spec.banned_sequences) text += (text.empty() ? "" : "/") + list_text(word);
         return text;
       },
       [](SequenceSpec& spec, const std::string& text) {
         std::stringstream in(text);
         for (std::string word; std::getline(in, word, '/');) spec.banned_sequences.push_back(list_from<int32_t>(word));
       }}};
  return fields;
}

struct OptionField {
  const char* name;
  std::function<double(const Script&)> get;
  std::function<void(Script&, double)> set;
};

template <class T>
OptionField option(const char* name, T SchedulerOptions::* member) {
  return {name, [member](const Script& script) { return static_cast<double>(script.options.*member); },
          [member](Script& script, double value) { script.options.*member = static_cast<T>(value); }};
}

const std::vector<OptionField>& option_fields() {
  static const std::vector<OptionField> fields = {
      option("page_size", &SchedulerOptions::page_size),
      option("num_blocks", &SchedulerOptions::num_blocks),
      option("window", &SchedulerOptions::window),
      option("window_blocks", &SchedulerOptions::window_blocks),
      option("context", &SchedulerOptions::context_length),
      option("running", &SchedulerOptions::max_running_requests),
      option("prefill", &SchedulerOptions::max_prefill_tokens),
      option("chunk", &SchedulerOptions::chunked_prefill_size),
      option("mixed", &SchedulerOptions::enable_mixed_chunk),
      option("policy", &SchedulerOptions::policy),
      option("eviction", &SchedulerOptions::eviction),
      option("conservativeness", &SchedulerOptions::schedule_conservativeness),
      option("uncached", &SchedulerOptions::disable_radix_cache),
      option("overtake", &SchedulerOptions::overtake_max),
      option("random_seed", &SchedulerOptions::random_seed),
      option("waiting_timeout", &SchedulerOptions::waiting_timeout_seconds),
      option("running_timeout", &SchedulerOptions::running_timeout_seconds),
      {"vocab", [](const Script& script) { return static_cast<double>(script.vocab_size); },
       [](Script& script, double value) { script.vocab_size = static_cast<int32_t>(value); }}};
  return fields;
}

std::pair<std::string, std::string> key_value(const std::string& word) {
  const size_t equals = word.find('=');
  if (equals == std::string::npos) throw std::runtime_error("no KEY=VALUE: " + word);
  return {word.substr(0, equals), word.substr(equals + 1)};
}

std::vector<SequenceSpec> unit_from(std::istream& in) {
  std::vector<SequenceSpec> unit(1);
  unit.back().max_new_tokens = 0;
  for (std::string word; in >> word;) {
    if (word == "|") {
      unit.emplace_back();
      continue;
    }
    const auto [key, value] = key_value(word);
    bool known = false;
    for (const SpecField& field : spec_fields()) {
      if (key != field.name) continue;
      field.set(unit.back(), value);
      known = true;
    }
    if (!known) throw std::runtime_error("no such field of a sequence: " + key);
  }
  return unit;
}

}  // namespace

std::string replay(const Script& script, bool check_integrity) {
  try {
    Player(script, check_integrity).play();
  } catch (const std::exception& error) {
    return *error.what() ? error.what() : "an exception";
  }
  return "";
}

Script shrink(Script script, int64_t tries_max) {
  int64_t tries = 0;
  const auto still_fails = [&](const Script& candidate) { return ++tries <= tries_max && !replay(candidate).empty(); };
  for (bool smaller = true; smaller && tries < tries_max;) {
    smaller = false;
    // Commands, in pieces that get smaller (delta debugging: Zeller, Hildebrandt 2002).
    for (size_t piece = std::max<size_t>(1, script.ops.size() / 2); piece >= 1; piece /= 2) {
      for (size_t begin = 0; begin < script.ops.size();) {
        Script candidate = script;
        const auto first = candidate.ops.begin() + static_cast<std::ptrdiff_t>(begin);
        candidate.ops.erase(first, first + static_cast<std::ptrdiff_t>(std::min(piece, script.ops.size() - begin)));
        if (still_fails(candidate)) {
          script = std::move(candidate);
          smaller = true;
        } else {
          begin += piece;
        }
      }
    }
    // Sequences of a unit, their extras, their lengths.
    for (size_t o = 0; o < script.ops.size(); ++o) {
      for (size_t s = 0; s < script.ops[o].unit.size();) {
        const auto attempt = [&](const std::function<void(std::vector<SequenceSpec>&)>& change) {
          Script candidate = script;
          change(candidate.ops[o].unit);
          if (candidate.ops[o].unit.empty() || !still_fails(candidate)) return false;
          script = std::move(candidate);
          return true;
        };
        if (attempt([&](auto& unit) { unit.erase(unit.begin() + static_cast<std::ptrdiff_t>(s)); })) {
          smaller = true;
          continue;
        }
        const SequenceSpec spec = script.ops[o].unit[s];  // a copy: an attempt that succeeds replaces the script
        const size_t length = spec.prompt->size();
        const int64_t new_tokens = spec.max_new_tokens;
        for (const size_t cut : {length / 2, length - 1}) {
          if (cut == 0 || script.ops[o].unit[s].prompt->size() != length) continue;
          smaller |= attempt([&](auto& unit) {
            unit[s].prompt = std::make_shared<std::vector<int32_t>>(
                unit[s].prompt->begin(), unit[s].prompt->begin() + static_cast<int64_t>(cut));
          });
        }
        for (const int64_t less : {new_tokens / 2, new_tokens - 1}) {
          if (less < 0 || script.ops[o].unit[s].max_new_tokens != new_tokens) continue;
          smaller |= attempt([&](auto& unit) {
            unit[s].max_new_tokens = less;
            unit[s].min_new_tokens = std::min(unit[s].min_new_tokens, less);
          });
        }
        if (!spec.stop_ids.empty() || !spec.banned_ids.empty() || !spec.banned_sequences.empty() ||
            spec.presence_penalty != 0 || spec.min_new_tokens != 0) {
          smaller |= attempt([&](auto& unit) {
            unit[s].stop_ids.clear();
            unit[s].banned_ids.clear();
            unit[s].banned_sequences.clear();
            unit[s].presence_penalty = 0;
            unit[s].min_new_tokens = 0;
          });
        }
        ++s;
      }
    }
  }
  return script;
}

std::string to_text(const Script& script) {
  std::ostringstream out;
  out << "options";
  for (const OptionField& field : option_fields()) {
    out.precision(17);
    out << ' ' << field.name << '=' << field.get(script);
  }
  out << '\n';
  for (const ScriptOp& op : script.ops) {
    static constexpr const char* kNames[] = {"submit", "schedule", "commit", "fail", "abort", "unpin", "ahead"};
    out << kNames[static_cast<int>(op.kind)];
    for (const SequenceSpec& spec : op.unit) {
      if (&spec != op.unit.data()) out << " |";
      for (const SpecField& field : spec_fields()) {
        const std::string text = field.get(spec);
        if (!text.empty()) out << ' ' << field.name << '=' << text;
      }
    }
    if (!op.numbers.empty()) {
      out << (op.kind == Kind::kSchedule || op.kind == Kind::kAhead ? " faults="
              : op.kind == Kind::kCommit                            ? " invalid="
                                                                    : " ")
          << list_text(op.numbers);
    }
    out << '\n';
  }
  return out.str();
}

Script script_from_text(const std::string& text) {
  static const std::map<std::string, Kind> kinds = {
      {"submit", Kind::kSubmit}, {"schedule", Kind::kSchedule}, {"commit", Kind::kCommit}, {"fail", Kind::kFail},
      {"abort", Kind::kAbort},   {"unpin", Kind::kUnpin},       {"ahead", Kind::kAhead}};
  Script script;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream in(line);
    std::string command, word;
    if (!(in >> command) || command[0] == '#') continue;
    if (command == "options") {
      while (in >> word) {
        const auto [key, value] = key_value(word);
        bool known = false;
        for (const OptionField& field : option_fields()) {
          if (key != field.name) continue;
          field.set(script, std::stod(value));
          known = true;
        }
        if (!known) throw std::runtime_error("no such option: " + key);
      }
      continue;
    }
    const auto kind = kinds.find(command);
    if (kind == kinds.end()) throw std::runtime_error("unknown command " + command);
    ScriptOp op;
    op.kind = kind->second;
    if (op.kind == Kind::kSubmit) {
      op.unit = unit_from(in);
    } else if (in >> word) {
      const size_t equals = word.find('=');
      op.numbers = list_from<uint64_t>(equals == std::string::npos ? word : word.substr(equals + 1));
    }
    script.ops.push_back(std::move(op));
  }
  return script;
}

}  // namespace tokenmill::testing
