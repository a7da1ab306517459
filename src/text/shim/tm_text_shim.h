// The C face of the Rust library in this folder: tokenizers, chat templates, stop regexes, safetensors headers.
//
// Conventions: text is UTF-8 as pointer and length, never zero-terminated, and may be NULL where the length is 0.
// A function that can fail returns NULL or false and fills *error, which the caller frees with tm_bytes_free.
// TmBytes and TmIds handed out belong to the caller; TmSlice only points into the object it came from. Objects are
// opaque and are freed once with their own function (NULL is allowed). A panic inside Rust is caught and comes back as
// an error. TmTokenizer, TmRegex and TmSafetensors are immutable and may be used from many threads at once.
#ifndef TOKENMILL_TEXT_SHIM_H_
#define TOKENMILL_TEXT_SHIM_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const uint8_t* data;
  size_t size;
} TmSlice;

typedef struct {
  uint8_t* data;
  size_t size, capacity;
} TmBytes;

typedef struct {
  uint32_t* data;
  size_t size, capacity;
} TmIds;

void tm_bytes_free(TmBytes bytes);
void tm_ids_free(TmIds ids);
// Gives the memory of freed objects back to the system.
void tm_release_memory(void);

// ---- safetensors -----------------------------------------------------------------------------------------------

typedef struct TmSafetensors TmSafetensors;

typedef struct {
  TmSlice name;
  TmSlice dtype;          // "F32", "BF16", "I64" … as the file spells it
  const uint64_t* shape;  // outermost first; NULL where ndim is 0
  size_t ndim;
  uint64_t begin, end;  // byte offsets from the start of the file
} TmSafetensor;

// Parses and checks the header of a whole safetensors file (a mapping of it): the header's length against the file's,
// its JSON, each tensor's shape against its byte range, and that the ranges cover the file's data without overlap or
// gap. Reads nothing but the header. The result does not refer to `file`.
TmSafetensors* tm_safetensors_parse(const uint8_t* file, size_t file_size, TmBytes* error);
size_t tm_safetensors_count(const TmSafetensors* header);
// index < count; tensors come in the order of their data.
TmSafetensor tm_safetensors_get(const TmSafetensors* header, size_t index);
void tm_safetensors_free(TmSafetensors* header);

// ---- tokenizer -------------------------------------------------------------------------------------------------

typedef struct TmTokenizer TmTokenizer;

typedef enum {
  TM_VOCAB_BPE = 0,      // GGUF "gpt2": byte-level BPE with merges
  TM_VOCAB_SPM = 1,      // GGUF "llama": SentencePiece BPE by scores, byte fallback
  TM_VOCAB_UNIGRAM = 2,  // GGUF "t5": SentencePiece unigram by scores
} TmVocabKind;

// GGUF's tokenizer.ggml.token_type.
typedef enum {
  TM_TOKEN_NORMAL = 1,
  TM_TOKEN_UNKNOWN = 2,
  TM_TOKEN_CONTROL = 3,
  TM_TOKEN_USER_DEFINED = 4,
  TM_TOKEN_UNUSED = 5,
  TM_TOKEN_BYTE = 6,
} TmTokenType;

typedef struct {
  TmVocabKind kind;
  const TmSlice* tokens;
  size_t token_count;
  const float* scores;    // token_count of them, or NULL (BPE)
  const int32_t* types;   // TmTokenType, token_count of them, or NULL: all normal
  const TmSlice* merges;  // BPE: "left right" by falling rank
  size_t merge_count;
  TmSlice pre;                         // BPE: the name of the pre-tokenizer, tokenizer.ggml.pre
  TmSlice charsmap;                    // unigram: SentencePiece's precompiled normalisation, or empty
  int64_t bos_id, eos_id, unknown_id;  // -1: none
  bool add_bos, add_eos;
  bool add_space_prefix;  // SPM, unigram
  bool remove_extra_whitespaces;
} TmVocab;

// The text of a tokenizer.json.
TmTokenizer* tm_tokenizer_from_json(const uint8_t* json, size_t size, TmBytes* error);
TmTokenizer* tm_tokenizer_from_vocab(const TmVocab* vocab, TmBytes* error);
void tm_tokenizer_free(TmTokenizer* tokenizer);

bool tm_tokenizer_encode(const TmTokenizer* tokenizer, const uint8_t* text, size_t size, bool add_special, TmIds* ids,
                         TmBytes* error);
// Ids outside the vocabulary are skipped.
bool tm_tokenizer_decode(const TmTokenizer* tokenizer, const uint32_t* ids, size_t count, bool skip_special,
                         TmBytes* text, TmBytes* error);
// The bytes the id stands for in the middle of a text; empty outside the vocabulary.
TmBytes tm_tokenizer_token_bytes(const TmTokenizer* tokenizer, uint32_t id);
// Whether the id is SentencePiece's spelling of one byte, such as <0x0A>.
bool tm_tokenizer_is_byte_token(const TmTokenizer* tokenizer, uint32_t id);
bool tm_tokenizer_is_special(const TmTokenizer* tokenizer, uint32_t id);
// -1 where there is no such token.
int64_t tm_tokenizer_token_to_id(const TmTokenizer* tokenizer, const uint8_t* token, size_t size);
// 1 + the largest id.
int64_t tm_tokenizer_vocab_size(const TmTokenizer* tokenizer);

// ---- chat template ---------------------------------------------------------------------------------------------

typedef struct {
  TmSlice source;         // the template's text
  TmSlice messages_json;  // a JSON list
  TmSlice kwargs_json;    // a JSON object: tools, add_generation_prompt, …
  TmSlice bos_token, eos_token;
  bool has_frozen_now;
  TmSlice frozen_now;  // "YYYY-MM-DD HH:MM:SS", the clock strftime_now reads; else the local time
} TmChatInput;

bool tm_chat_render(const TmChatInput* input, TmBytes* text, TmBytes* error);

// ---- stop regex ------------------------------------------------------------------------------------------------

typedef struct TmRegex TmRegex;
typedef struct TmRegexCursor TmRegexCursor;

typedef struct {
  bool matched;
  int64_t begin, end;  // where matched: bytes since the cursor was made
  int64_t live_begin;  // the earliest byte from which a match may still be growing; the bytes fed where there is none
} TmRegexStep;

TmRegex* tm_regex_compile(const uint8_t* pattern, size_t size, TmBytes* error);
void tm_regex_free(TmRegex* regex);
// A search through a growing text. The regex must outlive its cursors; a cursor belongs to one thread.
TmRegexCursor* tm_regex_cursor_new(const TmRegex* regex);
void tm_regex_cursor_free(TmRegexCursor* cursor);
// Appends bytes. Reports the first match to end (of those the longest) among these bytes; one whose end depends on the
// byte after it (\b, multi-line $) is reported when that byte comes.
TmRegexStep tm_regex_cursor_feed(TmRegexCursor* cursor, const uint8_t* bytes, size_t size);

#ifdef __cplusplus
}
#endif

#endif  // TOKENMILL_TEXT_SHIM_H_
