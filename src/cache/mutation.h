// Faults that a test build plants (-DTOKENMILL_MUTATION=n on its own copy of cache and sched) to show that the
// simulation catches them. The product is built without; then every use is a constant false.
#pragma once

namespace tokenmill {

#ifndef TOKENMILL_MUTATION
#define TOKENMILL_MUTATION 0
#endif

enum class Mutation {
  kNone = 0,
  kLeaseNotTaken = 1,        // locks do not keep blocks from being evicted
  kFreedOneStepEarly = 2,    // a sequence's blocks go when its last step is scheduled, not when it is committed
  kDuplicateFreedEarly = 3,  // a duplicate goes while the scheduled step still reads and writes it
  kFailedStepKept = 4,       // what a failed step should have written stays in the tree
  kWindowFreedEarly = 6,     // a window block goes while the next token still sees it
  kSlotOfThisStep = 7,       // a token that is not known yet is taken from its sequence's row in the wrong step
  kCopyFromUncommitted = 5,  // rows are copied from blocks that the same step is yet to write
};

constexpr bool mutated(Mutation mutation) { return static_cast<int>(mutation) == TOKENMILL_MUTATION; }

}  // namespace tokenmill
