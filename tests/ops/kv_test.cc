// copy_blocks, and the memory operations under it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "ops/isas.h"
#include "ops/paged_attention.h"
#include "tokenmill/error.h"

namespace tokenmill::reference {
namespace {

// A second sequence takes over the first `shared` rows of the first one's blocks, the last block in part by a copy, and
// goes on with tokens of its own. It must get the bits of a sequence that computed all of them itself.
TEST(CopyBlocks, APartlySharedBlockServesItsNewOwner) {
  std::mt19937_64 random(8);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int32_t page_size : {1, 2, 16, 32, 64}) {
      for (const int32_t shared : {1, 5, 31, 33, 64, 70}) {
        const AttentionShape shape = {
            .q_heads = 4, .kv_heads = 2, .head_dim = 40, .dtype = dtype, .window = 0, .softcap = 0, .scale = 0.2f};
        const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
        const int32_t length = 90;
        std::vector<Table> sequences(2, Table(length, shape.qkv_cols()));
        fill_normal(sequences[0], random);
        fill_normal(sequences[1], random);
        for (int64_t t = 0; t < shared; ++t) {
          for (int64_t c = 0; c < shape.qkv_cols(); ++c) sequences[1].at(t, c) = sequences[0].at(t, c);
        }
        PagedPool alone(*backend, shape, page_size, 2 * length + 4, 1);
        const auto expected = alone.run(sequences, {{{0, length}}, {{1, length}}});

        PagedPool pool(*backend, shape, page_size, 2 * length + 4, 2);
        auto outs = pool.run(sequences, {{{0, length}}});
        pool.adopt_prefix(1, 0, shared);
        pool.run_step(sequences, {{1, length - shared}}, outs);
        for (int64_t t = shared; t < length; ++t) {
          for (int64_t c = 0; c < outs[1].cols(); ++c) {
            ASSERT_EQ(outs[1].at(t, c), expected[1].at(t, c)) << "page " << page_size << " shared " << shared;
          }
        }
      }
    }
  }
}

TEST(Memory, IsZeroAndComesBack) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  const size_t bytes = size_t{5} << 20;
  std::byte* const memory = backend->allocate(bytes);
  for (size_t i = 0; i < bytes; i += 4096) ASSERT_EQ(memory[i], std::byte{0});
  std::memset(memory, 1, bytes);
  std::vector<std::byte> host(16);
  backend->copy_to_host(host.data(), memory + 100, 16);
  EXPECT_EQ(host[15], std::byte{1});
  backend->release_pages(memory + 1, bytes - 1);
  EXPECT_EQ(memory[0], std::byte{1});  // not a whole page of the range
  EXPECT_EQ(memory[8192], std::byte{0});
  backend->free(memory);
  EXPECT_ANY_THROW(backend->free(host.data()));
  backend->free(backend->allocate(0));
}

TEST(Memory, ReservingTouchesNothing) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  std::byte* const memory = backend->allocate(size_t{64} << 30);  // more than most machines have
  memory[size_t{32} << 30] = std::byte{7};
  EXPECT_EQ(memory[(size_t{32} << 30) - 1], std::byte{0});
  backend->free(memory);
}

TEST(Memory, ARefusalSaysWhatToDo) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  try {
    backend->allocate(size_t{1} << 62);
    FAIL() << "nothing can reserve that";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kRuntime);
    EXPECT_EQ(std::string(error.what()).rfind("Not enough memory. Please try to increase mem_fraction_static", 0), 0u);
  }
}

TEST(Isa, WrongNamesAndCountsAreErrors) {
  EXPECT_THROW(make_cpu_backend({.num_threads = 1, .isa = "sse2"}), Error);
  EXPECT_THROW(make_cpu_backend({.num_threads = -1, .isa = ""}), Error);
  EXPECT_GE(make_cpu_backend({.num_threads = 0, .isa = ""})->num_threads(), 1);
  setenv("TOKENMILL_CPU", "avx2", 1);
  EXPECT_EQ(make_cpu_backend({.num_threads = 1, .isa = ""})->description().rfind("avx2", 0), 0u);
  setenv("TOKENMILL_CPU", "neon", 1);
  EXPECT_THROW(make_cpu_backend({.num_threads = 1, .isa = ""}), Error);
  unsetenv("TOKENMILL_CPU");
}

}  // namespace
}  // namespace tokenmill::reference
