// What of a repository a model needs: names only, so the same rules serve a listing from the hub and a local snapshot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/hub/hub_id.h"

namespace tokenmill {

enum class HubWant {
  kModel,      // config, tokenizer, weights
  kTokenizer,  // no weights
};

struct HubChoice {
  std::vector<std::string> files;  // to fetch; with an index among them, the shards that it names come after it
  std::string gguf;                // the GGUF file that is the model; "": a folder with config.json
  std::string index;               // model.safetensors.index.json where that lists the weights; "": none
};

// names: all files of the repository. Throws Error(kValue | kUnsupported) naming the repository and the remedy: no
// model in it, pickled weights only, several GGUF files and none chosen.
HubChoice choose_hub_files(const HubId& id, const std::vector<std::string>& names, const std::string& load_format,
                           HubWant want);

// The shards that an index file names, sorted. Throws Error(kValue) naming the file.
std::vector<std::string> index_shards(const std::string& index_path);

}  // namespace tokenmill
