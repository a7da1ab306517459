#include "bench/program_workloads.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <unordered_map>

#include "sched/scheduler.h"

namespace tokenmill::bench {
namespace {

using Tokens = std::vector<int32_t>;

class Maker {
 public:
  Maker(double scale, uint64_t seed, int32_t vocab_size) : scale_(scale), random_(seed), vocab_(vocab_size) {}

  int64_t times(int64_t count) const { return std::max<int64_t>(1, std::llround(scale_ * static_cast<double>(count))); }
  Tokens text(int64_t mean) {  // half to one and a half times the mean
    Tokens tokens(static_cast<size_t>(std::max<int64_t>(1, mean / 2 + static_cast<int64_t>(random_() % (mean + 1)))));
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_));
    return tokens;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  double normal() {
    const double u = (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53;
    const double v = (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
  }
  int32_t call(int32_t parent, std::initializer_list<const Tokens*> parts, int64_t new_tokens) {
    ProgramCall call{.parent = parent, .tokens = {}, .new_tokens = new_tokens};
    for (const Tokens* part : parts) call.tokens.insert(call.tokens.end(), part->begin(), part->end());
    calls.push_back(std::move(call));
    return static_cast<int32_t>(calls.size()) - 1;
  }

  std::vector<ProgramCall> calls;

 private:
  double scale_;
  std::mt19937_64 random_;
  int32_t vocab_;
};

void few_shot(Maker& make) {
  const Tokens shots = make.text(600);
  for (int64_t i = 0; i < make.times(64); ++i) {
    const Tokens question = make.text(60);
    make.call(-1, {&shots, &question}, 32);
  }
}

// Four endings are scored for every context: 20 shots, context, ending.
void hellaswag(Maker& make) {
  const Tokens shots = make.text(1200);
  for (int64_t i = 0; i < make.times(48); ++i) {
    const Tokens context = make.text(80);
    for (int ending = 0; ending < 4; ++ending) {
      const Tokens words = make.text(20);
      make.call(-1, {&shots, &context, &words}, 1);
    }
  }
}

void react(Maker& make) {
  const Tokens tools = make.text(900);
  for (int64_t agent = 0; agent < make.times(24); ++agent) {
    const Tokens task = make.text(60);
    int32_t turn = make.call(-1, {&tools, &task}, 50);
    for (int i = 0; i < 4; ++i) {
      const Tokens observation = make.text(120);
      turn = make.call(turn, {&observation}, 50);
    }
  }
}

// Several kinds of call on one template each, an agent's memory in the middle.
void generative_agents(Maker& make) {
  std::vector<Tokens> templates;
  for (int i = 0; i < 3; ++i) templates.push_back(make.text(250));
  for (int64_t agent = 0; agent < make.times(32); ++agent) {
    const Tokens memory = make.text(200);
    for (const Tokens& kind : templates) {
      for (int i = 0; i < 2; ++i) {
        const Tokens event = make.text(40);
        make.call(-1, {&kind, &memory, &event}, 24);
      }
    }
  }
}

void tree_of_thought(Maker& make) {
  const Tokens rules = make.text(300);
  for (int64_t problem = 0; problem < make.times(8); ++problem) {
    const Tokens task = make.text(80);
    std::vector<int32_t> level{make.call(-1, {&rules, &task}, 32)};
    for (int depth = 0; depth < 3; ++depth) {
      std::vector<int32_t> next;
      for (const int32_t parent : level) {
        for (int branch = 0; branch < (depth < 2 ? 3 : 1); ++branch) {
          const Tokens ask = make.text(16);
          next.push_back(make.call(parent, {&ask}, 40));
        }
      }
      level = next;
    }
  }
}

void skeleton_of_thought(Maker& make) {
  const Tokens rules = make.text(200);
  for (int64_t i = 0; i < make.times(16); ++i) {
    const Tokens question = make.text(40);
    const int32_t skeleton = make.call(-1, {&rules, &question}, 60);
    for (int point = 0; point < 6; ++point) {
      const Tokens ask = make.text(12);
      make.call(skeleton, {&ask}, 70);
    }
  }
}

// An essay is judged along several dimensions, then the judgement is summed up.
void judge(Maker& make) {
  const Tokens rubric = make.text(250);
  for (int64_t essay = 0; essay < make.times(24); ++essay) {
    const Tokens words = make.text(400);
    for (int dimension = 0; dimension < 4; ++dimension) {
      const Tokens ask = make.text(24);
      make.call(-1, {&rubric, &words, &ask}, 40);
    }
  }
}

void json(Maker& make) {
  const Tokens schema = make.text(250);
  for (int64_t i = 0; i < make.times(64); ++i) {
    const Tokens document = make.text(150);
    make.call(-1, {&schema, &document}, 80);
  }
}

void chat(Maker& make, int64_t output) {
  const Tokens system = make.text(120);
  for (int64_t i = 0; i < make.times(32); ++i) {
    const Tokens first = make.text(40);
    int32_t turn = make.call(-1, {&system, &first}, output);
    for (int more = 0; more < 3; ++more) {
      const Tokens say = make.text(40);
      turn = make.call(turn, {&say}, output);
    }
  }
}

// Three retrieved documents, the popular ones often, most relevant last.
void rag(Maker& make) {
  const Tokens instruction = make.text(120);
  std::vector<Tokens> documents;
  for (int i = 0; i < 16; ++i) documents.push_back(make.text(280));
  for (int64_t i = 0; i < make.times(96); ++i) {
    const auto popular = [&] { return std::min(make.below(16), make.below(16)); };
    const int64_t a = popular(), b = popular(), c = make.below(16);
    const Tokens question = make.text(30);
    make.call(-1, {&instruction, &documents[a], &documents[b], &documents[c], &question}, 40);
  }
}

void random(Maker& make) {
  for (int64_t i = 0; i < make.times(128); ++i) {
    const Tokens prompt = make.text(256);
    make.call(-1, {&prompt}, 32);
  }
}

// Lengths of published ShareGPT statistics: prompts of median 90 and outputs of median 160 tokens, heavy tails.
void sharegpt(Maker& make) {
  for (int64_t i = 0; i < make.times(128); ++i) {
    const auto length = [&](double median, double sigma, int64_t most) {
      return std::clamp<int64_t>(std::llround(median * std::exp(sigma * make.normal())), 4, most);
    };
    Tokens prompt = make.text(2 * 1024);
    prompt.resize(static_cast<size_t>(length(90, 1.2, 1024)), 1);
    make.call(-1, {&prompt}, length(160, 0.9, 512));
  }
}

// The scheduler with a device that makes tokens up.
class Runner {
 public:
  Runner(const Workload& workload, const CacheRun& how) : workload_(workload), scheduler_(options(how)) {
    contexts_.resize(workload.calls.size());
    for (size_t i = 0; i < workload.calls.size(); ++i) {
      const int32_t parent = workload.calls[i].parent;
      if (parent < 0) {
        roots_.push_back(static_cast<int32_t>(i));
      } else {
        children_[parent].push_back(static_cast<int32_t>(i));
      }
    }
    if (how.depth_first) {
      std::sort(roots_.begin(), roots_.end(),
                [&](int32_t a, int32_t b) { return workload.calls[a].tokens < workload.calls[b].tokens; });
    }
  }

  CacheFigures run() {
    submit(roots_);
    while (scheduler_.has_work()) step();
    const SchedulerStats stats = scheduler_.stats();
    figures_.evicted_blocks = stats.evictions;
    figures_.retractions = stats.retractions;
    figures_.steps = stats.steps;
    return figures_;
  }

 private:
  static SchedulerOptions options(const CacheRun& how) {
    SchedulerOptions options;
    options.page_size = how.page_size;
    options.num_blocks = static_cast<int32_t>(how.pool_tokens / how.page_size);
    options.context_length = int64_t{1} << 30;
    options.max_running_requests = how.max_running;
    options.chunked_prefill_size = how.chunked_prefill_size;
    options.policy = how.policy;
    options.disable_radix_cache = !how.cache;
    return options;
  }

  void submit(const std::vector<int32_t>& calls) {
    std::vector<SequenceSpec> unit;
    for (const int32_t call : calls) {
      const ProgramCall& what = workload_.calls[call];
      Tokens prompt = what.parent < 0 ? Tokens() : contexts_[what.parent];
      prompt.insert(prompt.end(), what.tokens.begin(), what.tokens.end());
      contexts_[call] = prompt;
      SequenceSpec spec;
      call_of_.push_back(call);
      spec.id = call_of_.size();  // rising in order of submission: ties go by it
      spec.prompt = std::make_shared<const Tokens>(std::move(prompt));
      spec.max_new_tokens = what.new_tokens;
      unit.push_back(std::move(spec));
    }
    if (!unit.empty()) scheduler_.add(std::move(unit));
  }

  void step() {
    const auto begin = std::chrono::steady_clock::now();
    if (const Batch* batch = scheduler_.schedule()) {
      figures_.computed_tokens += static_cast<int64_t>(batch->tokens.size());
      StepResult result;
      result.step = batch->step;
      result.sampled.resize(batch->sampling.size());
      for (size_t i = 0; i < result.sampled.size(); ++i) {
        // Of the call and the place alone, so that every order gives the same texts.
        const int64_t id = call_of_[batch->rows[batch->sampling_rows[i]].sequence_id - 1];
        result.sampled[i].token = static_cast<int32_t>((id * 7919 + int64_t{batch->sampling[i].position}) % 1000003);
      }
      scheduler_.commit(result);
    }
    const std::vector<SequenceEvent> events = scheduler_.take_events();
    figures_.host_us += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    for (const SequenceEvent& event : events) {
      const int32_t call = call_of_[event.sequence_id - 1];
      for (const SampledToken& token : event.tokens) contexts_[call].push_back(token.token);
      if (!event.finish) continue;
      ++figures_.calls;
      figures_.aborted += event.finish->type == FinishReason::Type::kAbort;
      figures_.prompt_tokens += event.prompt_tokens;
      figures_.cached_tokens += event.cached_tokens;
      const auto found = children_.find(call);
      if (found != children_.end()) submit(found->second);
    }
  }

  const Workload& workload_;
  Scheduler scheduler_;
  std::vector<Tokens> contexts_;
  std::vector<int32_t> roots_, call_of_;
  std::unordered_map<int32_t, std::vector<int32_t>> children_;
  CacheFigures figures_;
};

}  // namespace

bool Workload::is_static() const {
  return std::all_of(calls.begin(), calls.end(), [](const ProgramCall& call) { return call.parent < 0; });
}

int64_t Workload::largest_context() const {
  std::vector<int64_t> length(calls.size());
  int64_t largest = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    length[i] = (calls[i].parent < 0 ? 0 : length[calls[i].parent]) + static_cast<int64_t>(calls[i].tokens.size()) +
                calls[i].new_tokens;
    largest = std::max(largest, length[i]);
  }
  return largest;
}

int64_t Workload::all_tokens() const {
  std::vector<int64_t> length(calls.size());
  for (size_t i = 0; i < calls.size(); ++i) {
    length[i] = (calls[i].parent < 0 ? 0 : length[calls[i].parent]) + static_cast<int64_t>(calls[i].tokens.size()) +
                calls[i].new_tokens;
  }
  return std::accumulate(length.begin(), length.end(), int64_t{0});
}

std::vector<std::string> workload_names() {
  return {"few-shot",        "hellaswag",           "react", "generative-agents",
          "tree-of-thought", "skeleton-of-thought", "judge", "json",
          "chat-short",      "chat-long",           "rag",   "random",
          "sharegpt"};
}

Workload make_workload(std::string_view name, double scale, uint64_t seed, int32_t vocab_size) {
  Maker make(scale, seed, vocab_size);
  if (name == "few-shot") {
    few_shot(make);
  } else if (name == "hellaswag") {
    hellaswag(make);
  } else if (name == "react") {
    react(make);
  } else if (name == "generative-agents") {
    generative_agents(make);
  } else if (name == "tree-of-thought") {
    tree_of_thought(make);
  } else if (name == "skeleton-of-thought") {
    skeleton_of_thought(make);
  } else if (name == "judge") {
    judge(make);
  } else if (name == "json") {
    json(make);
  } else if (name == "chat-short" || name == "chat-long") {
    chat(make, name == "chat-short" ? 24 : 160);
  } else if (name == "rag") {
    rag(make);
  } else if (name == "random") {
    random(make);
  } else if (name == "sharegpt") {
    sharegpt(make);
  } else {
    throw std::invalid_argument("no workload is called " + std::string(name));
  }
  return {.name = std::string(name), .calls = std::move(make.calls)};
}

double CacheFigures::hit_rate() const {
  return prompt_tokens == 0 ? 0 : static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens);
}

CacheFigures run_cache(const Workload& workload, const CacheRun& how) { return Runner(workload, how).run(); }

CacheFigures best_cache(const Workload& workload, int64_t pool_tokens, int32_t page_size) {
  // Every call alone in a pool that holds them all, and some room for blocks that are filled in part.
  const auto room = static_cast<int64_t>(workload.calls.size() + 8) * 2 * page_size;
  return run_cache(workload, {.policy = SchedulePolicy::kFcfs,
                              .pool_tokens = pool_tokens > 0 ? pool_tokens : workload.all_tokens() + room,
                              .page_size = page_size,
                              .max_running = 1,
                              .chunked_prefill_size = int64_t{1} << 30,
                              .cache = true,
                              .depth_first = workload.is_static()});
}

}  // namespace tokenmill::bench
