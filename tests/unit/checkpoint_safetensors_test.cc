// Hugging Face folders: one file, shards, and every way they can be broken.
#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"

namespace tokenmill {
namespace {

const std::string kTiny = TOKENMILL_TEST_DATA "/tiny/";

TEST(Safetensors, OpensEveryTinyModel) {
  for (const char* name : {"llama-tied", "llama-untied", "llama-rope3", "llama-yarn", "llama-bias", "mistral-swa",
                           "qwen2", "qwen3", "gemma3", "stories260k"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = Checkpoint::open(kTiny + name, {});
    EXPECT_EQ(checkpoint->format(), "safetensors");
    const auto specs = tensor_specs(checkpoint->config());
    EXPECT_EQ(checkpoint->tensors().size(), specs.size());
    for (const TensorSpec& spec : specs) {
      const RawTensor& tensor = checkpoint->get(spec.name, spec.shape);
      ASSERT_NE(tensor.data, nullptr);
      EXPECT_EQ(checkpoint->file_of(tensor), 0);
      checkpoint->release(tensor);
    }
    EXPECT_EQ(checkpoint->find("layers.0.self_attn.nothing"), nullptr);
    EXPECT_EQ(checkpoint->find("lm_head.weight") == nullptr, checkpoint->config().tie_word_embeddings);
  }
}

}  // namespace
}  // namespace tokenmill
