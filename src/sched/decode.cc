// Room for one more token of every decode, and whom to send back to the queue when there is none.
#include <algorithm>

#include "base/check.h"
#include "cache/mutation.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {

bool Scheduler::Impl::make_room_for_decodes() {
  auto wanted = [&] {
    int64_t blocks = 0;
    for (const Sequence* sequence : running) {
      if (sequence->state != SequenceState::kDecode) continue;
      blocks += blocks_for(sequence->kv_len + 1) - static_cast<int64_t>(sequence->lease.blocks.size());
    }
    return blocks;
  };
  auto wanted_window = [&] {
    int64_t blocks = 0;
    for (const Sequence* sequence : running) {
      if (options.window == 0 || sequence->state != SequenceState::kDecode) continue;
      blocks += blocks_for(sequence->kv_len + 1) - static_cast<int64_t>(sequence->lease.window_blocks.size());
    }
    return blocks;
  };
  auto too_little = [&] {
    return wanted() > cache.available_blocks() || wanted_window() > cache.window_available_blocks();
  };
  if (too_little()) {
    if (running.size() > 1) retract_some();
    if (too_little()) {
      TM_CHECK(running.size() == 1);
      abort_now(*running[0],
                "Out of KV memory: the request is alone and cannot grow past " + std::to_string(running[0]->kv_len) +
                    " tokens; the pool holds " + std::to_string(cache.total_blocks() * options.page_size) +
                    pinned_note() +
                    ". Use a smaller max_new_tokens, or a larger max_total_tokens or mem_fraction_static.");
      return false;
    }
  }
  std::vector<Sequence*> without;  // no block although there were some: back to the queue
  for (Sequence* sequence : running) {
    if (sequence->state != SequenceState::kDecode) continue;
    int64_t missing = blocks_for(sequence->kv_len + 1) - static_cast<int64_t>(sequence->lease.blocks.size());
    if ((missing > 0 && !acquire(missing, sequence->lease.blocks)) ||
        !cache.acquire_window(blocks_for(sequence->kv_len + 1), sequence->lease)) {
      without.push_back(sequence);
    }
  }
  for (Sequence* sequence : without) {
    retract(*sequence);
    ++totals.retractions;
    step->retracted = true;
  }
  for (Sequence* sequence : running) {
    if (!mutated(Mutation::kFreedOneStepEarly)) break;
    if (sequence->state != SequenceState::kDecode || sequence->new_tokens_left() != 1) continue;
    std::vector<int32_t> table = sequence->lease.blocks;
    cache.finish(sequence->spec.cache_namespace, sequence->lease, sequence->all_tokens().first(sequence->kv_len));
    sequence->lease.blocks = std::move(table);
  }
  return true;
}

// Fewest output tokens, then longest prompt first, until the others have room for some steps.
void Scheduler::Impl::retract_some() {
  std::vector<Sequence*> victims = running;
  std::sort(victims.begin(), victims.end(), [](const Sequence* a, const Sequence* b) {
    return std::tuple(a->num_outputs, -a->num_prompt(), b->spec.id) <
           std::tuple(b->num_outputs, -b->num_prompt(), a->spec.id);
  });
  auto enough = [&] {
    int64_t blocks = 0, window_blocks = 0;
    for (const Sequence* sequence : running) {
      int64_t steps = std::min(kRetractDecodeSteps, sequence->new_tokens_left());
      int64_t blocks_then = blocks_for(sequence->num_tokens() + steps - 1);
      blocks += std::max<int64_t>(0, blocks_then - static_cast<int64_t>(sequence->lease.blocks.size()));
      window_blocks += window_wanted(*sequence, sequence->num_tokens() + steps - 1, 1);
    }
    return blocks <= cache.available_blocks() && window_blocks <= cache.window_available_blocks();
  };
  int64_t retracted = 0;
  for (Sequence* victim : victims) {
    if (running.size() == 1 || (retracted > 0 && enough())) break;
    retract(*victim);
    ++retracted;
  }
  int64_t decoded = 0, max_new_tokens = 0;
  for (const Sequence* sequence : running) {
    decoded += sequence->num_outputs;
    max_new_tokens += sequence->spec.max_new_tokens;
  }
  double before = ratio.value();
  ratio.set_after_retraction(decoded, static_cast<int64_t>(running.size()), max_new_tokens);
  totals.retractions += retracted;
  step->retracted = true;
  log_retraction(retracted, before);
}

// Back to the queue. Its tokens stay; what is computed goes into the tree, where it may survive until its return.
void Scheduler::Impl::retract(Sequence& sequence) {
  TM_CHECK(!in_flight);
  if (partial == &sequence) partial = nullptr;
  auto it = groups.find(sequence.spec.group);
  if (it != groups.end() && it->second.prompt == Group::Prompt::kComputing && it->second.leader == sequence.spec.id) {
    it->second.prompt = Group::Prompt::kNone;
  }
  cache.finish(sequence.spec.cache_namespace, sequence.lease, sequence.all_tokens().first(sequence.kv_len));
  sequence.kv_len = sequence.scheduled_len = 0;
  ++sequence.num_retractions;
  std::erase(running, &sequence);
  waiting.requeue(sequence);
}

void Scheduler::Impl::add_decode_rows() {
  for (Sequence* sequence : running) {
    if (sequence->state != SequenceState::kDecode) continue;
    TM_CHECK(sequence->kv_len + 1 == sequence->num_tokens());
    add_row(*sequence, sequence->kv_len, sequence->kv_len + 1);
    add_sampling_row(*sequence);
    ++step->decodes;
  }
  if (step->decodes > 0) ratio.decode_step();
}

}  // namespace tokenmill
