// Who goes first: pure functions of what is known of the waiting sequences. WaitingQueue keeps the order they define.
//
//   lpm         longest matched prefix first          lof       most max_new_tokens first
//   dfs-weight  the heaviest subtree first            random    by a hash of (seed, id)
//   fcfs        in order of arrival                   priority  highest priority first, with preemption
//
// Ties go by arrival.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace tokenmill {

enum class SchedulePolicy { kLpm, kFcfs, kDfsWeight, kLof, kRandom, kPriority };

// By the name that the option schedule_policy has for it; nullopt: there is none of that name.
std::optional<SchedulePolicy> find_policy(std::string_view name);

struct WaitingFacts {
  uint64_t id = 0;
  int64_t matched = 0;  // tokens of its longest common prefix with the tree
  int64_t max_new_tokens = 0;
  int64_t priority = 0;
};

// Smaller goes first. dfs-weight is no function of one sequence: 0, see RadixCache::visit_watches().
int64_t waiting_rank(SchedulePolicy policy, const WaitingFacts& facts, uint64_t seed);

// Whether a sequence goes before all that is not due: once as many have left the queue as had arrived up to its own
// unit (`arrival`), and overtake_max more. Priorities are obeyed without a bound: that is what they are for.
bool is_due(SchedulePolicy policy, uint64_t arrival, uint64_t num_left, uint64_t overtake_max);

}  // namespace tokenmill
