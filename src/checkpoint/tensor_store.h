// The part of a Checkpoint that all formats share: tensors by canonical name, some as they lie in a mapped file, some
// made when they are first found (reordered rows, 1 + w, random weights) and dropped again by release().
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"

namespace tokenmill {

class TensorStore : public Checkpoint {
 public:
  const RawTensor* find(std::string_view canonical_name) const override;
  std::vector<const RawTensor*> tensors() const override;
  void release(const RawTensor& tensor) const override;
  int64_t num_files() const override;
  int64_t file_of(const RawTensor& tensor) const override;

 protected:
  using Bytes = std::vector<std::byte>;
  // The index of the file, for add(). `file` must outlive the store.
  int64_t add_file(const MappedFile& file);
  // tensor: name, type and shape. Its bytes are `source` itself, or what `make` returns.
  // `source` lies inside `file`; it is empty, and file 0, where nothing is read.
  void add(RawTensor tensor, int64_t file, std::span<const std::byte> source, std::function<Bytes()> make = nullptr);

 private:
  struct Entry {
    RawTensor tensor;
    int64_t file = 0;
    std::span<const std::byte> source;
    std::function<Bytes()> make;  // empty: the tensor is `source`
  };
  Entry& entry_of(const RawTensor& tensor) const;
  void materialize(Entry& entry) const;

  std::vector<const MappedFile*> files_;
  // Guards the bytes of made tensors, which come and go under const calls.
  mutable std::mutex mutex_;
  mutable std::map<std::string, Entry, std::less<>> entries_;
  std::vector<const RawTensor*> order_;
};

// Row transforms for `make`. Bytes are rows of the given size.
// Undoes the order that GGUF's llama converter gives q and k: row (head, i, j) becomes row (head, j, i), where j is the
// half of the rotary pair (0, 1) and i its frequency.
std::vector<std::byte> unpermute_heads(std::span<const std::byte> rows, int64_t heads, int64_t head_dim,
                                       size_t row_bytes);
// 1 + w in fp32 of w in an unquantised type.
std::vector<std::byte> add_one_f32(std::span<const std::byte> weights, WeightType type);

}  // namespace tokenmill
