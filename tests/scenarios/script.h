// What was done to a scheduler, written down: played again it gives the same steps, so a failure of the simulation can
// be cut down to the few commands that matter and kept as a file in tests/scenarios/scripts.
//
//   options page_size=4 num_blocks=16 policy=0 …
//   submit id=1 prompt=5,5,7 new=3 group=1 | id=2 …     one unit
//   schedule [faults=0,2]      which acquisitions of blocks fail
//   ahead [faults=0,2]         plans and launches the step after the one in flight
//   commit [invalid=1]         whose logits are no numbers
//   fail · abort 1 · unpin 1
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sched/scheduler.h"

namespace tokenmill::testing {

struct ScriptOp {
  enum class Kind { kSubmit, kSchedule, kCommit, kFail, kAbort, kUnpin, kAhead };
  Kind kind = Kind::kSchedule;
  std::vector<SequenceSpec> unit;  // kSubmit
  std::vector<uint64_t> numbers;   // kSchedule, kAhead: faults; kCommit: invalid ids; kAbort, kUnpin: the id
};

struct Script {
  SchedulerOptions options;  // without functions
  int32_t vocab_size = 100;
  std::vector<ScriptOp> ops;
};

// Plays the script and then runs to the end. "": all is well; else what is wrong. A commit without a step in flight is
// left out, and steps still in flight are committed before the next, so that every part of a script is one.
std::string replay(const Script& script, bool check_integrity = true);

// A script that fails, too, with as few commands, sequences and tokens as `tries_max` replays find.
Script shrink(Script script, int64_t tries_max = 3000);

std::string to_text(const Script& script);
Script script_from_text(const std::string& text);  // throws std::runtime_error

}  // namespace tokenmill::testing
