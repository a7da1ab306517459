// Plays the text files tests/scenarios/*.txt. One command a line:
//
//   options page_size=4 pool_tokens=64 chunk=8 max_running=2 mixed=0 policy=fcfs conservativeness=0.1
//   submit NAME prompt=1..20,7 new=5 [samples=2] [stop=3] [priority=1] [namespace=x]   ("submit+": same unit as the
//   next) step [N] · run · fail MESSAGE · abort NAME MESSAGE · flush true|false expect rows NAME...            of the
//   last step, in any order (nothing: no step ran) expect NAME cached=99 tokens=5 retractions=1
//   finish=length|stop|abort|none expect stats KEY=N ... · expect log LINE (the last one that begins so)
//
// Every finished output is compared with what its tokens demand; integrity is checked after each step.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

using Arguments = std::map<std::string, std::string>;

Arguments read_arguments(std::istream& in) {
  Arguments arguments;
  for (std::string word; in >> word;) {
    size_t equals = word.find('=');
    if (equals == std::string::npos) throw std::runtime_error("no KEY=VALUE: " + word);
    arguments[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return arguments;
}

std::vector<int32_t> read_tokens(const std::string& text) {
  std::vector<int32_t> tokens;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    size_t dots = part.find("..");
    int32_t first = std::stoi(part), last = dots == std::string::npos ? first : std::stoi(part.substr(dots + 2));
    for (int32_t token = first; token <= last; ++token) tokens.push_back(token);
  }
  return tokens;
}

class Player {
 public:
  void play(const std::string& command, std::istream& in) {
    if (command == "options") return set_options(read_arguments(in));
    if (!world_) throw std::runtime_error("options come first");
    std::string name, rest;
    if (command == "submit" || command == "submit+") {
      in >> name;
      submit(name, read_arguments(in), command == "submit");
    } else if (command == "step") {
      int64_t steps = 1;
      in >> steps;
      while (steps-- > 0) rows_ = world_->step();
    } else if (command == "run") {
      world_->run();
      for (auto& [id, spec] : world_->specs) check_output(id);
    } else if (command == "fail") {
      std::getline(in >> std::ws, rest);
      const Batch* batch = world_->scheduler->schedule();
      ASSERT_NE(batch, nullptr);
      world_->scheduler->fail(batch->step, rest);
      world_->scheduler->check_integrity();
      world_->take_events();
    } else if (command == "abort") {
      std::getline(in >> name >> std::ws, rest);
      world_->scheduler->abort(ids_.at(name), rest);
      world_->take_events();
    } else if (command == "flush") {
      in >> rest;
      EXPECT_EQ(world_->scheduler->flush_cache(), rest == "true");
    } else if (command == "expect") {
      in >> name;
      expect(name, in);
    } else {
      throw std::runtime_error("unknown command " + command);
    }
  }

 private:
  static constexpr const char* kFinishNames[] = {"length", "stop", "abort"};

  void set_options(const Arguments& arguments) {
    auto number = [&](const char* key, int64_t otherwise) {
      auto it = arguments.find(key);
      return it == arguments.end() ? otherwise : std::stoll(it->second);
    };
    SchedulerOptions options = World::defaults(static_cast<int32_t>(number("page_size", 16)),
                                               static_cast<int32_t>(number("pool_tokens", 4096)));
    options.chunked_prefill_size = number("chunk", 512);
    options.max_running_requests = number("max_running", 256);
    options.enable_mixed_chunk = number("mixed", 1) != 0;
    if (arguments.contains("conservativeness")) {
      options.schedule_conservativeness = std::stod(arguments.at("conservativeness"));
    }
    if (arguments.contains("policy")) {
      static const std::map<std::string, SchedulePolicy> kPolicies = {
          {"lpm", SchedulePolicy::kLpm}, {"fcfs", SchedulePolicy::kFcfs}, {"priority", SchedulePolicy::kPriority}};
      options.policy = kPolicies.at(arguments.at("policy"));
    }
    world_ = std::make_unique<World>(options);
  }

  void submit(const std::string& name, const Arguments& arguments, bool last_of_unit) {
    const int samples = arguments.contains("samples") ? std::stoi(arguments.at("samples")) : 1;
    for (int sample = 0; sample < samples; ++sample) {
      SequenceSpec spec = world_->spec(read_tokens(arguments.at("prompt")), std::stoll(arguments.at("new")));
      if (arguments.contains("stop")) spec.stop_ids = read_tokens(arguments.at("stop"));
      if (arguments.contains("priority")) spec.priority = std::stoll(arguments.at("priority"));
      if (arguments.contains("namespace")) spec.cache_namespace = arguments.at("namespace");
      spec.group = samples > 1 ? ids_.size() + 1 : 0;
      spec.sample_index = static_cast<uint32_t>(sample);
      ids_[samples > 1 ? name + std::to_string(sample) : name] = spec.id;
      unit_.push_back(std::move(spec));
    }
    if (last_of_unit) world_->submit_unit(std::exchange(unit_, {}));
  }

  void check_output(uint64_t id) {
    const SequenceEvent& event = world_->last.at(id);
    ASSERT_TRUE(event.finish.has_value());
    if (event.finish->type == FinishReason::Type::kAbort) return;
    EXPECT_EQ(world_->outputs[id], expected_output(world_->specs.at(id), World::kVocab)) << "sequence " << id;
  }

  void expect(const std::string& what, std::istream& in) {
    if (what == "rows") {
      std::set<uint64_t> wanted;
      for (std::string name; in >> name;) wanted.insert(ids_.at(name));
      EXPECT_EQ(std::set<uint64_t>(rows_.begin(), rows_.end()), wanted);
    } else if (what == "log") {
      std::string line;
      std::getline(in >> std::ws, line);
      ASSERT_FALSE(world_->lines.empty());
      EXPECT_TRUE(world_->lines.back().starts_with(line)) << world_->lines.back();
    } else if (what == "stats") {
      SchedulerStats stats = world_->scheduler->stats();
      std::map<std::string, int64_t> values = {{"running", stats.running},
                                               {"queue", stats.queue},
                                               {"finished", stats.finished},
                                               {"aborted", stats.aborted},
                                               {"evictions", stats.evictions},
                                               {"retractions", stats.retractions},
                                               {"preemptions", stats.preemptions},
                                               {"blocks_free", stats.blocks_free},
                                               {"blocks_cached", stats.blocks_cached}};
      for (auto& [key, value] : read_arguments(in)) EXPECT_EQ(values.at(key), std::stoll(value)) << key;
    } else {
      SequenceEvent event;
      if (world_->last.contains(ids_.at(what))) event = world_->last.at(ids_.at(what));
      std::map<std::string, std::string> values = {
          {"cached", std::to_string(event.cached_tokens)},
          {"tokens", std::to_string(event.completion_tokens)},
          {"retractions", std::to_string(event.num_retractions)},
          {"finish", event.finish ? kFinishNames[static_cast<int>(event.finish->type)] : "none"}};
      for (auto& [key, value] : read_arguments(in)) EXPECT_EQ(values.at(key), value) << what << " " << key;
    }
  }

  std::unique_ptr<World> world_;
  std::map<std::string, uint64_t> ids_;
  std::vector<SequenceSpec> unit_;
  std::vector<uint64_t> rows_;
};

TEST(TextScenarios, All) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TOKENMILL_TEST_SCENARIOS)) {
    if (entry.path().extension() != ".txt" || entry.path().filename() == "CMakeLists.txt") continue;
    ++files;
    std::ifstream file(entry.path());
    Player player;
    int number = 0;
    for (std::string line; std::getline(file, line);) {
      SCOPED_TRACE(entry.path().filename().string() + ":" + std::to_string(++number));
      std::istringstream in(line);
      std::string command;
      if (!(in >> command) || command[0] == '#') continue;
      ASSERT_NO_THROW(player.play(command, in));
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GE(files, 4);
}

}  // namespace
}  // namespace tokenmill::testing
