// Tokenizer::from_gguf: the vocabulary under tokenizer.ggml.* in a GGUF file.

#include <algorithm>

#include "base/gguf_file.h"
#include "text/tokenizer_impl.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr const char* kPrefix = "tokenizer.ggml.";

std::string key(const char* name) { return std::string(kPrefix) + name; }

[[noreturn]] void fail(const GgufFile& file, const std::string& what) {
  throw Error(ErrorKind::kValue, file.path() + ": " + what);
}

PageVector<TmSlice> slices(const PageVector<std::string_view>& strings) {
  PageVector<TmSlice> result;
  result.reserve(strings.size());
  for (const auto text : strings) result.push_back(to_slice(text));
  return result;
}

// -1 where the key is absent; an id outside the vocabulary is an error.
int64_t token_id(const GgufFile& file, const char* name, size_t vocab_size) {
  const auto id = file.get_int(key(name));
  if (!id || *id == 0xffffffff) return -1;  // converters write the largest uint32 for "none"
  if (*id < 0 || *id >= static_cast<int64_t>(vocab_size)) {
    fail(file, "key '" + key(name) + "' must be an id in [0, " + std::to_string(vocab_size) + "), got " +
                   std::to_string(*id) + "; convert the model again");
  }
  return *id;
}

TmVocabKind vocab_kind(const GgufFile& file) {
  const std::string_view model = file.require_string(key("model"));
  if (model == "gpt2") return TM_VOCAB_BPE;
  if (model == "llama") return TM_VOCAB_SPM;
  if (model == "t5") return TM_VOCAB_UNIGRAM;
  fail(file, "key 'tokenizer.ggml.model' is '" + std::string(model) +
                 "'; gpt2, llama and t5 are supported. Give the model's folder with tokenizer.json as tokenizer_path");
}

// What llama.cpp takes where the file does not say: SentencePiece models and the two BPE families that were trained so.
bool adds_bos_by_default(TmVocabKind kind, std::string_view pre) {
  if (kind != TM_VOCAB_BPE) return kind == TM_VOCAB_SPM;
  return pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3" || pre == "tekken";
}

void check_size(const GgufFile& file, const char* name, size_t size, size_t wanted) {
  if (size != wanted) {
    fail(file, "key '" + key(name) + "' has " + std::to_string(size) + " entries, but there are " +
                   std::to_string(wanted) + " tokens; convert the model again");
  }
}

TmTokenizer* build(const GgufFile& file, const TmVocab& vocab) {
  TmBytes error{};
  TmTokenizer* shim = tm_tokenizer_from_vocab(&vocab, &error);
  if (shim == nullptr) fail(file, "its vocabulary cannot be used: " + take(error));
  return shim;
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_gguf(const std::string& path) {
  const GgufFile file(path);
  const auto tokens = file.get_strings(key("tokens"));
  if (!tokens) fail(file, "lacks the key 'tokenizer.ggml.tokens'; convert the model again");
  const auto scores = file.get_floats(key("scores"));
  const auto types64 = file.get_ints(key("token_type"));
  const auto merges = file.get_strings(key("merges"));
  const auto charsmap = file.get_ints(key("precompiled_charsmap"));
  if (scores) check_size(file, "scores", scores->size(), tokens->size());
  if (types64) check_size(file, "token_type", types64->size(), tokens->size());

  const auto token_slices = slices(*tokens);
  const auto merge_slices = merges ? slices(*merges) : PageVector<TmSlice>();
  PageVector<int32_t> types;
  if (types64) types.assign(types64->begin(), types64->end());
  std::string charsmap_bytes;
  if (charsmap) charsmap_bytes.assign(charsmap->begin(), charsmap->end());

  TmVocab vocab{};
  vocab.kind = vocab_kind(file);
  if (vocab.kind == TM_VOCAB_BPE && !merges)
    fail(file, "lacks the key 'tokenizer.ggml.merges'; convert the model again");
  const std::string_view pre = file.get_string(key("pre")).value_or("");
  vocab.tokens = token_slices.data();
  vocab.token_count = token_slices.size();
  vocab.scores = scores ? scores->data() : nullptr;
  vocab.types = types64 ? types.data() : nullptr;
  vocab.merges = merge_slices.data();
  vocab.merge_count = merge_slices.size();
  vocab.pre = to_slice(pre);
  vocab.charsmap = to_slice(charsmap_bytes);
  vocab.bos_id = token_id(file, "bos_token_id", tokens->size());
  vocab.eos_id = token_id(file, "eos_token_id", tokens->size());
  vocab.unknown_id = token_id(file, "unknown_token_id", tokens->size());
  vocab.add_bos = file.get_bool(key("add_bos_token")).value_or(adds_bos_by_default(vocab.kind, pre));
  vocab.add_eos = file.get_bool(key("add_eos_token")).value_or(vocab.kind == TM_VOCAB_UNIGRAM);
  vocab.add_space_prefix = file.get_bool(key("add_space_prefix")).value_or(vocab.kind != TM_VOCAB_BPE);
  vocab.remove_extra_whitespaces = file.get_bool(key("remove_extra_whitespaces")).value_or(false);

  auto impl = std::make_unique<Impl>();
  impl->origin = path;
  impl->shim = build(file, vocab);
  const auto text_of = [&](int64_t id) {
    return id < 0 ? std::string() : std::string((*tokens)[static_cast<size_t>(id)]);
  };
  if (vocab.bos_id >= 0) impl->bos = static_cast<int32_t>(vocab.bos_id);
  if (vocab.eos_id >= 0) impl->eos = static_cast<int32_t>(vocab.eos_id);
  impl->bos_text = text_of(vocab.bos_id);
  impl->eos_text = text_of(vocab.eos_id);
  for (const char* name : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const int64_t id = token_id(file, name, tokens->size());
    auto& ids = impl->eos_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  }
  impl->chat_template = std::string(file.get_string("tokenizer.chat_template").value_or(""));
  return std::make_shared<Tokenizer>(std::move(impl));
}

}  // namespace tokenmill
