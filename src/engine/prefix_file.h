// The file of a saved prefix: which engine computed it, its token ids and its K/V.
//
//   "tokenmill-prefix 2\n" | length of the header, 8 bytes little-endian | header, JSON | K/V | ContentHash of all
//   before
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"

namespace tokenmill {

// What must be equal for the K/V of one engine to be what another would compute, by name, in the order in which a
// difference is told.
using PrefixKey = nlohmann::ordered_json;

struct PrefixFile {
  PrefixKey key;
  std::vector<int32_t> tokens;
  std::span<const std::byte> kv;             // block after block
  std::shared_ptr<const MappedFile> memory;  // what kv points into, when it was read
};

// Whole or not at all: a reader never sees half a file, whatever ends this process.
// Throws Error(kRuntime) naming the file and the system's reason.
void write_prefix_file(const std::string& path, const PrefixFile& file);
// Throws Error(kValue) naming the file and the remedy: no such file, no prefix file, of another version, cut or
// damaged.
PrefixFile read_prefix_file(const std::string& path);
// Throws Error(kValue) naming what differs, in the file and here.
void require_same_key(const std::string& path, const PrefixKey& in_file, const PrefixKey& here);

}  // namespace tokenmill
