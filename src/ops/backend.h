// The only list of device operations. Every backend (cpu/, cuda/) implements all of it; tests/ops compares each with a
// naive fp32 reference. Shapes are [rows, cols]; T = tokens of the step, H = hidden size.
//
// Numerics. Activations between ops are fp32 on the CPU. Matrix products take their inputs in the weight's compute
// type: fp32 weights: fp32. bf16 weights: the input is rounded to bf16, products are accumulated in fp32 in the
// canonical order of ops/cpu/linear.h. fp16 weights: the same with fp16, where what is beyond its range becomes its
// largest value. Quantised weights: the input is quantised to int8 with one scale a row and 32
// values. Every row's result is independent of the other rows, of T, of the page size and of the number of threads, bit
// for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "batch/batch.h"
#include "tokenmill/error.h"

namespace tokenmill {

// How weights are held and multiplied.
enum class Packing {
  kFloat32,   // dequantised exactly to fp32; KV fp32
  kBFloat16,  // dequantised and rounded to bf16; KV bf16
  kFloat16,   // the same with fp16, where the backend has it
  kNative,    // quantised weights stay quantised (int8 activations), all others as kBFloat16; KV bf16
};

// A weight matrix [n, k] in the backend's own layout, made once by Backend::pack. Holds its bias, if any.
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t n = 0, k = 0;
  size_t bytes = 0;  // resident bytes of the packed form
  std::string name;  // for messages
};

// RMS norm parameters: y = x * rsqrt(mean(x^2) + eps) * weight. Gemma's 1 + w is added at load.
struct Norm {
  const float* weight = nullptr;  // [cols] backend memory
  float eps = 1e-6f;
};

enum class Activation { kSilu, kGeluTanh };

// The KV memory of one layer: num_blocks blocks of page_size tokens; the layout inside a block is the backend's.
struct KvLayer {
  std::byte* base = nullptr;
  int64_t block_bytes = 0;
  int32_t num_blocks = 0, page_size = 0;
  int32_t kv_heads = 0, head_dim = 0;
  DType dtype = DType::kBF16;
  KvGroup group = KvGroup::kFull;  // which of the batch's tables names its blocks
};

// cos/sin of one step's tokens for one set of frequencies: [T, rotary_dim / 2] each.
struct RopeTable {
  Matrix cos, sin;
};

// Rotates q and k in place inside qkv and writes k and v of every token of the step to its KV slot.
struct RopeKvArgs {
  Matrix qkv;  // [T, (q_heads + 2 * kv_heads) * head_dim] fp32; q is rotated in place
  int32_t q_heads = 0;
  const RopeTable* rope = nullptr;  // null: no rotation. Half-split pairs (i, i + rotary_dim / 2)
  const Norm* q_norm = nullptr;     // per-head norms before the rotation; null: none
  const Norm* k_norm = nullptr;
  KvLayer kv;
  // The next call is attention() over this qkv and kv, and nothing else reads q and k as this leaves them: the backend
  // may do this op's work there, or leave them in a form of its own.
  bool attention_follows = false;
};

struct AttentionArgs {
  Matrix q;  // [T, >= q_heads * head_dim] fp32 (a view into qkv)
  int32_t q_heads = 0;
  KvLayer kv;
  float scale = 1;
  float softcap = 0;   // 0: none; else logits = cap * tanh(logits / cap)
  int32_t window = 0;  // 0: full causal; else key j is visible to query i iff i - window < j <= i
  Matrix out;          // [T, q_heads * head_dim] fp32, or of product_input()'s type
};

struct LinearArgs {
  Matrix x;                          // [T, k] fp32, or without input_norm of product_input()'s type
  const Norm* input_norm = nullptr;  // applied to every row of x first
  const Weight* weight = nullptr;    // [n, k]
  bool add_to_out = false;           // out += instead of out =
  bool fine_inputs = false;          // where inputs are quantised to int8: two codes a value, as logits need it
  Matrix out;                        // [T, n] fp32, must not alias x
};

// out = act(norm(x) gate^T) * (norm(x) up^T)
struct GatedLinearArgs {
  Matrix x;
  const Norm* input_norm = nullptr;
  const Weight* gate = nullptr;  // [n, k] both
  const Weight* up = nullptr;
  Activation activation = Activation::kSilu;
  Matrix out;  // [T, n] fp32, or of product_input()'s type
};

// The device is of no more use to this backend: what runs on it cannot go on. Ends the engine, never the process.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message) : Error(ErrorKind::kRuntime, message) {}
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;         // "cpu"
  virtual std::string description() const = 0;  // processor and code paths: "avx512 (vnni, bf16), 2 threads"
  virtual int num_threads() const = 0;

  // --- memory -------------------------------------------------------------------------------------------------------
  // Bytes of the device's memory that can still be taken; 0: not known. On the CPU what the memory limits leave.
  virtual int64_t available_memory() const = 0;
  // Reserves `bytes` of zero-filled backend memory; on the CPU pages are touched at first use. Throws Error(kRuntime)
  // "Not enough memory. …" when it cannot. Freed with free().
  virtual std::byte* allocate(size_t bytes) = 0;
  virtual void free(std::byte* memory) = 0;
  virtual void copy_to_host(void* target, const void* source, size_t bytes) = 0;
  virtual void copy_from_host(void* target, const void* source, size_t bytes) = 0;
  // Gives the pages of an allocation's range back (contents become undefined); a no-op where that is not possible.
  virtual void release_pages(std::byte* memory, size_t bytes) = 0;

  // --- weights ------------------------------------------------------------------------------------------------------
  // Whether Packing::kNative holds quantised weights as they are; else it is kBFloat16.
  virtual bool keeps_quantized() const { return true; }
  // Whether there is Packing::kFloat16.
  virtual bool has_float16() const { return false; }
  // Packs the row-wise concatenation of `parts` (all with equal cols; types may differ) and its bias ([n] fp32 host
  // memory, or empty). Checks for NaN and infinity and throws Error(kValue) naming the tensor.
  virtual std::unique_ptr<Weight> pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                                       Packing packing) = 0;

  // What attention() and gated_linear() may write and linear() read instead of fp32, for products with weights of this
  // packing: kBF16 or kF16 where their inputs are rounded to it anyway, so that nothing is lost.
  virtual DType product_input(Packing packing) const {
    (void)packing;
    return DType::kF32;
  }

  // --- one step -----------------------------------------------------------------------------------------------------
  // Remembers the step's rows for rope_kv_write and attention; called once a step before them. What a window table's
  // entries of -1 would hold is read by nobody: attention() over such a layer looks at no key that all its queries'
  // windows leave out. Tokens of batch.slot_tokens are taken from the slots of launch_sample(); only where overlaps().
  virtual void plan(const Batch& batch, int32_t page_size) = 0;
  virtual void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) = 0;
  // Rows `rows[i]` of x to row i of out.
  virtual void gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) = 0;
  virtual void rms_norm(Matrix x, const Norm& norm, Matrix out) = 0;      // out may be x
  virtual void add_rms_norm(Matrix x, const Norm& norm, Matrix sum) = 0;  // sum += norm(x): sandwich norms
  virtual void linear(const LinearArgs& args) = 0;
  virtual void gated_linear(const GatedLinearArgs& args) = 0;
  // cos/sin(position * inv_freq) * factor, the product rounded to fp32 first, as transformers does.
  // inv_freq [rotary_dim / 2]; positions [T]
  virtual void rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                          RopeTable out) = 0;
  virtual void rope_kv_write(const RopeKvArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void softcap(Matrix x, float cap) = 0;  // in place: cap * tanh(x / cap)
  virtual int64_t kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const = 0;
  virtual void copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) = 0;

  // Where the backend tells what the engine's log should warn of; on the thread that calls its operations.
  virtual void set_warning_sink(std::function<void(const std::string&)> sink) { (void)sink; }

  // --- graphs -------------------------------------------------------------------------------------------------------
  // Whether run_graph() can record a step and launch it again as one.
  virtual bool has_graphs() const { return false; }
  // Runs `work`: calls of this backend only, on the rows of the last plan(). For one key they are the same calls with
  // the same matrices every time, and spans of ids are those of the planned batch itself. So a backend may record them
  // and later launch the record over what plan() has put on the device. Only plans whose rows are all of one token may
  // be run so.
  virtual void run_graph(uint64_t key, const std::function<void()>& work) {
    (void)key;
    work();
  }

  // --- sampling -----------------------------------------------------------------------------------------------------
  // Row i of logits [rows.size(), vocab] fp32, destroyed. Order: penalties, bias, bans, temperature, top_k, top_p,
  // min_p, draw; logprobs from the logits as they came.
  virtual void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) = 0;

  // Where the device works beside the host, sample() comes in two halves, so that the next step can be planned and
  // launched before this one's tokens are known here. One step's launches lie between two of collect_samples(), but for
  // those of a step whose sampling failed half-way: the next from slot 0 on takes their place.
  virtual bool overlaps() const { return false; }
  // The rows' tokens (0 where a row has none) are left on the device in slots [first_slot, first_slot + rows.size()) of
  // num_slots, the step's number of rows, until the next step's launch.
  virtual void launch_sample(Matrix logits, std::span<const SamplingRow> rows, int32_t first_slot, int32_t num_slots) {
    (void)logits, (void)rows, (void)first_slot, (void)num_slots;
    throw DeviceError("This backend's steps do not overlap.");
  }
  // Waits for what was launched since the last call: [num_slots], in order.
  virtual void collect_samples(std::span<SampledToken> out) { (void)out; }
};

struct CpuOptions {
  int num_threads = 0;  // 0: the processors this process may use (affinity and cgroup quota)
  std::string isa;      // "": TOKENMILL_CPU, else the best the processor has; avx2, avx512, amx
};
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace tokenmill
