// Strings to ids and back, over the `tokenizers` crate (src/text/shim). Immutable and safe from many threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

class Tokenizer {
 public:
  // A folder with tokenizer.json (and tokenizer_config.json where there is one). Throws Error naming the file.
  static std::shared_ptr<const Tokenizer> from_folder(const std::string& folder);
  // The vocabulary inside a GGUF file (gpt2/bpe and llama/spm, unigram); ids equal the model's own tokenizer.json.
  static std::shared_ptr<const Tokenizer> from_gguf(const std::string& path);
  ~Tokenizer();
  // What freed tokenizers, templates and texts took goes back to the system.
  static void release_freed_memory();

  // Text in, ids out; text must be valid UTF-8 (Error(kValue) otherwise, with the byte offset).
  // add_special_tokens puts in what the tokenizer's post-processor adds.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;
  // As encode(text, true), with the BOS that add_bos_token asks for and never a second one where the text begins with
  // it: for templated chats and prompts.
  std::vector<int32_t> encode_prompt(std::string_view text) const;
  // skip_special drops special tokens; invalid UTF-8 becomes U+FFFD as in Python. Of a run of byte tokens (Llama 2,
  // Gemma) what is valid from its beginning stays, and from the first byte that is not, each byte becomes U+FFFD: what
  // a stream of these ids shows. (`tokenizers` has U+FFFD for all of such a run.)
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  // The bytes token `id` stands for when it follows other text (a leading space kept; byte tokens as their byte;
  // special tokens spelt out). Empty for ids out of range. Valid as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;
  // Whether `id` is SentencePiece's spelling of a byte, such as <0x0A>.
  bool is_byte_token(int32_t id) const;
  bool is_special(int32_t id) const;
  int64_t vocab_size() const;  // 1 + the largest id
  std::optional<int32_t> bos_token_id() const;
  std::optional<int32_t> eos_token_id() const;
  std::vector<int32_t> eos_token_ids() const;  // the tokenizer's own idea: eos, and GGUF's eot, eom
  std::optional<int32_t> token_to_id(std::string_view token) const;
  const std::string& chat_template() const;  // "" where there is none; the default one of several
  std::string bos_token() const;             // spelt out, "" where there is none
  std::string eos_token() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }
  explicit Tokenizer(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenmill
