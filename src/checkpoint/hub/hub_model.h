// A model on the hub as a folder or file on this machine: from the cache, or downloaded into it.
#pragma once

#include <functional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/hub/hub_id.h"
#include "checkpoint/model_path.h"

namespace tokenmill {

// Asks the hub which commit `revision` is, and fetches what of it is missing. Where the hub cannot be asked, a snapshot
// in the cache serves (with a warning), as it does under HF_HUB_OFFLINE and for a commit that is given by its hash.
// Throws Error naming the repository and the remedy.
ModelPath resolve_hub_model(const HubId& id, const CheckpointOptions& options);

}  // namespace tokenmill
