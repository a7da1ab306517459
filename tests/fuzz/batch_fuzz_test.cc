// Mutated lines of a batch, of its output, and of a hub's listing are taken or refused with an Error, and never worse.
#include <gtest/gtest.h>

#include "checkpoint/hub/hub_api.h"
#include "checkpoint/hub/hub_id.h"
#include "engine/batch/batch_record.h"
#include "engine/batch/batch_request.h"
#include "fuzz/mutator.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

const std::string kLines[] = {
    R"({"custom_id": "a", "prompt": "x y", "sampling_params": {"top_p": 0.5, "stop": ["a"], "logit_bias": {"3": 1.5}}})",
    R"({"input_ids": [1, 2, 3], "sampling_params": {"n": 2, "max_new_tokens": null, "seed": 7}, "custom_id": [1, {"a": 2}]})",
    R"({"messages": [{"role": "user", "content": "hi"}], "custom_id": 7})",
    R"({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": )"
    R"("user", "content": "hi"}], "max_tokens": 5, "logprobs": true, "top_logprobs": 2, "response_format": {"type": "text"}}})",
    R"({"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": {"prompt": ["x"], "logprobs": 1, "n": 2, )"
    R"("chat_template_kwargs": null, "best_of": 1, "tools": [], "stop": "a"}})"};

TEST(BatchFuzzTest, InputLines) {
  testing::Mutator mutator(21);
  uint64_t taken = 0;
  const uint64_t rounds = testing::fuzz_rounds();
  for (uint64_t round = 0; round < rounds; ++round) {
    const std::string line = mutator.mutate_json(kLines[round % std::size(kLines)]);
    const std::string id = find_custom_id(line);
    try {
      const BatchRequest request = parse_batch_line(line, {});
      const bool whole = request.request.prompt || request.request.input_ids || request.request.messages_json;
      EXPECT_TRUE(whole) << line;
      EXPECT_EQ(id.empty(), request.custom_id.is_null()) << line;
      ++taken;
    } catch (const Error&) {
      (void)error_line({.index = 0, .fingerprint = 1}, id, 1, "code", line);
    }
  }
  EXPECT_GT(taken, 0u);
  EXPECT_LT(taken, rounds);
}

TEST(BatchFuzzTest, OutputLines) {
  testing::Mutator mutator(22);
  const RecordId id{.index = 12, .fingerprint = 0x0123456789abcdef};
  std::vector<Output> outputs(2);
  BatchRequest request;
  std::string lines = result_lines(request, id, outputs, {});
  const std::string original = lines.substr(0, lines.find('\n'));
  ASSERT_EQ(find_record_id(original)->index, 12);
  ASSERT_EQ(find_record_id(original)->fingerprint, id.fingerprint);
  request.form = LineForm::kChat;
  const std::string chat = result_lines(request, id, outputs, {});
  ASSERT_EQ(find_record_id(chat)->index, 12);
  for (uint64_t round = 0; round < testing::fuzz_rounds(); ++round) {
    const auto found = find_record_id(mutator.mutate_json(round % 2 == 0 ? original : chat));
    if (found) EXPECT_GE(found->index, 0);
  }
}

TEST(BatchFuzzTest, HubListings) {
  testing::Mutator mutator(23);
  const std::string original =
      R"({"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json", "size": 5, "blobId": )"
      R"("aa"}, {"rfilename": "a/b.safetensors", "size": 9, "lfs": {"sha256": "bb", "size": 99, "pointerSize": 1}}]})";
  const HubListing whole = parse_hub_listing(original, "hub");
  ASSERT_EQ(whole.files.size(), 2u);
  EXPECT_EQ(whole.files[1].etag, "bb");
  EXPECT_EQ(whole.files[1].size, 99);
  for (uint64_t round = 0; round < testing::fuzz_rounds(); ++round) {
    try {
      for (const HubFile& file : parse_hub_listing(mutator.mutate_json(original), "hub").files) {
        EXPECT_TRUE(is_inside_path(file.name));
        EXPECT_TRUE(file.etag.empty() || is_plain_name(file.etag));
        EXPECT_GE(file.size, -1);
      }
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("hub"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace tokenmill
