// What one step's forward pass needs besides the weights: the backend, the KV pool, the ids and a workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "batch/batch.h"
#include "nn/kv_pool.h"
#include "nn/workspace.h"
#include "ops/backend.h"

namespace tokenmill {

struct ForwardContext {
  Backend& backend;
  KvPool& kv;
  Workspace& workspace;  // scratch of this step; nothing is allocated in the pass itself
  const Batch& batch;    // tokens [T], positions [T], rows
  size_t num_layers = std::numeric_limits<size_t>::max();  // that run: all there are, but while a device is warmed up
};

}  // namespace tokenmill
