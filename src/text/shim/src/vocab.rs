//! Tokenizers from the vocabulary inside a GGUF file, made so that the ids are those of the model's tokenizer.json.

use crate::ffi::{boxed, guard, slice, TmBytes, TmSlice};
use crate::tokenizer::TmTokenizer;
use std::collections::HashMap;
use tokenizers::decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip};
use tokenizers::models::{bpe::BPE, unigram::Unigram};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Prepend, Replace, Sequence as Normalizers, NFC};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

const KIND_BPE: i32 = 0;
const KIND_SPM: i32 = 1;
const KIND_UNIGRAM: i32 = 2;

const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;

/// SentencePiece's spelling of a space.
const SPACE: char = '\u{2581}';

#[repr(C)]
pub struct TmVocab {
    kind: i32,
    tokens: *const TmSlice,
    token_count: usize,
    scores: *const f32,
    types: *const i32,
    merges: *const TmSlice,
    merge_count: usize,
    pre: TmSlice,
    charsmap: TmSlice,
    bos_id: i64,
    eos_id: i64,
    unknown_id: i64,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    remove_extra_whitespaces: bool,
}

/// The same, borrowed and checked.
struct Vocab<'a> {
    tokens: Vec<String>,
    scores: &'a [f32],
    types: &'a [i32],
    merges: &'a [TmSlice],
    raw: &'a TmVocab,
}

impl Vocab<'_> {
    fn kind_of(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(TYPE_NORMAL)
    }
    fn unknown(&self) -> Option<&String> {
        usize::try_from(self.raw.unknown_id).ok().and_then(|id| self.tokens.get(id))
    }
    fn ids(&self) -> Result<HashMap<&str, u32>, String> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id as u32) {
                return Err(format!("tokens {first} and {id} are both spelt {token:?}"));
            }
        }
        Ok(ids)
    }
}

/// How a byte-level BPE splits text before merging, and what else its tokenizer.json sets.
struct PreTokenizer {
    names: &'static [&'static str],
    digits: bool,                    // each digit alone, before anything else
    splits: &'static [&'static str], // isolated matches, one after the other; none: GPT-2's own pattern
    nfc: bool,
    ignore_merges: bool, // a piece that is a token is that token, whatever the merges say
}

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const KANA_AND_HAN: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const HAN_AND_HANGUL: &str = "[\u{4e00}-\u{9fa5}\u{0800}-\u{4e00}\u{ac00}-\u{d7ff}]+";

/// By tokenizer.ggml.pre, the name that converters give. A file without the key counts as "default".
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default", "gpt-2", "phi-2", "mpt", "olmo", "roberta-bpe", "jina-es", "jina-de", "jina-v2-code"],
        digits: false,
        splits: &[],
        nfc: false,
        ignore_merges: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        digits: true,
        splits: &[],
        nfc: false,
        ignore_merges: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        digits: false,
        splits: &[LLAMA3_SPLIT],
        nfc: false,
        ignore_merges: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        digits: false,
        splits: &[LLAMA3_SPLIT],
        nfc: false,
        ignore_merges: false,
    },
    PreTokenizer { names: &["qwen2"], digits: false, splits: &[QWEN2_SPLIT], nfc: true, ignore_merges: false },
    PreTokenizer {
        names: &["stablelm2", "deepseek-r1-qwen", "megrez"],
        digits: false,
        splits: &[QWEN2_SPLIT],
        nfc: false,
        ignore_merges: false,
    },
    PreTokenizer { names: &["tekken"], digits: false, splits: &[TEKKEN_SPLIT], nfc: false, ignore_merges: true },
    PreTokenizer {
        names: &["gpt-4o", "llama4"],
        digits: false,
        splits: &[GPT4O_SPLIT],
        nfc: false,
        ignore_merges: true,
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        digits: false,
        splits: &[r"\p{N}{1,3}", KANA_AND_HAN, DEEPSEEK3_WORDS],
        nfc: false,
        ignore_merges: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        digits: false,
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}"],
        nfc: false,
        ignore_merges: false,
    },
];

fn err(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper, String> {
    let pattern = SplitPattern::Regex(pattern.to_string());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(PreTokenizerWrapper::Split).map_err(err)
}

fn byte_level_bpe(vocab: &Vocab) -> Result<Tokenizer, String> {
    let name = match unsafe { vocab.raw.pre.str("tokenizer.ggml.pre") }? {
        "" => "default",
        name => name,
    };
    let Some(rule) = PRE_TOKENIZERS.iter().find(|rule| rule.names.contains(&name)) else {
        let mut known: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|rule| rule.names.iter().copied()).collect();
        known.sort_unstable();
        return Err(format!(
            "the pre-tokenizer '{name}' (key tokenizer.ggml.pre) is not known here; known are {}. \
             Use the model's folder with tokenizer.json as tokenizer_path instead",
            known.join(", ")
        ));
    };
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for (rank, merge) in vocab.merges.iter().enumerate() {
        let merge = unsafe { merge.str("a merge") }?;
        // A token may begin with a space, but not be empty.
        let cut = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let Some(at) = cut.filter(|&at| at + 1 < merge.len()) else {
            return Err(format!("merge {rank} ({merge:?}) is not two tokens with a space between"));
        };
        merges.push((merge[..at].to_string(), merge[at + 1..].to_string()));
    }
    let ids = vocab.ids()?.into_iter().map(|(token, id)| (token.to_string(), id)).collect();
    let model = BPE::builder()
        .vocab_and_merges::<tokenizers::models::bpe::Vocab>(ids, merges)
        .ignore_merges(rule.ignore_merges)
        .build()
        .map_err(err)?;
    let mut tokenizer = Tokenizer::new(model);
    if rule.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(err)?;
    }
    let mut steps = Vec::new();
    if rule.digits {
        steps.push(PreTokenizerWrapper::Digits(Digits::new(true)));
    }
    for pattern in rule.splits {
        steps.push(split(pattern)?);
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, rule.splits.is_empty())));
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::new(true, true, true)));
    Ok(tokenizer)
}

/// SentencePiece's BPE knows scores, not merges: every pair of tokens whose join is a token is a merge, the highest score
/// of the join first; among equals the longer left part, then the longer right part, then the smaller ids.
fn merges_from_scores(vocab: &Vocab, ids: &HashMap<&str, u32>) -> Vec<(String, String)> {
    struct Merge<'a> {
        score: f32,
        parts: (&'a str, &'a str),
        ids: (u32, u32),
        chars: (usize, usize),
        id: u32,
    }
    let mut merges = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if !matches!(vocab.kind_of(id), TYPE_NORMAL | TYPE_USER_DEFINED) {
            continue; // never the result of a merge
        }
        // Converters write a placeholder for what users defined; SentencePiece takes it before all else.
        let user_defined = vocab.kind_of(id) == TYPE_USER_DEFINED;
        let score = if user_defined { f32::INFINITY } else { vocab.scores[id] };
        let chars = token.chars().count();
        for (left_chars, (at, _)) in token.char_indices().enumerate().skip(1) {
            let parts = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(parts.0), ids.get(parts.1)) {
                merges.push(Merge {
                    score,
                    parts,
                    ids: (left, right),
                    chars: (left_chars, chars - left_chars),
                    id: id as u32,
                });
            }
        }
    }
    merges.sort_by(|a, b| {
        b.score.total_cmp(&a.score).then(b.chars.cmp(&a.chars)).then(a.id.cmp(&b.id)).then(a.ids.cmp(&b.ids))
    });
    merges.into_iter().map(|m| (m.parts.0.to_string(), m.parts.1.to_string())).collect()
}

fn space_to_mark() -> Result<Replace, String> {
    Replace::new(" ", SPACE.to_string()).map_err(err)
}

fn sentencepiece_bpe(vocab: &Vocab) -> Result<Tokenizer, String> {
    let ids = vocab.ids()?;
    let merges = merges_from_scores(vocab, &ids);
    let owned = ids.iter().map(|(token, &id)| (token.to_string(), id)).collect();
    let byte_fallback = ids.contains_key("<0x00>") && ids.contains_key("<0xFF>");
    let mut builder = BPE::builder()
        .vocab_and_merges::<tokenizers::models::bpe::Vocab>(owned, merges)
        .fuse_unk(true)
        .byte_fallback(byte_fallback);
    if let Some(unknown) = vocab.unknown() {
        builder = builder.unk_token(unknown.clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(err)?);
    let mut normalizers = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        DecoderWrapper::Replace(Replace::new(SPACE.to_string().as_str(), " ").map_err(err)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if vocab.raw.add_space_prefix {
        normalizers.push(NormalizerWrapper::Prepend(Prepend::new(SPACE.to_string())));
        decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    normalizers.push(NormalizerWrapper::Replace(space_to_mark()?));
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(err)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

fn unigram(vocab: &Vocab) -> Result<Tokenizer, String> {
    let ids = vocab.ids()?;
    let byte_fallback = ids.contains_key("<0x00>") && ids.contains_key("<0xFF>");
    let pieces = vocab.tokens.iter().zip(vocab.scores).map(|(t, &s)| (t.clone(), f64::from(s))).collect();
    let unknown = usize::try_from(vocab.raw.unknown_id).ok();
    let model = Unigram::from(pieces, unknown, byte_fallback).map_err(err)?;
    let mut tokenizer = Tokenizer::new(model);
    let mut normalizers = Vec::new();
    let charsmap = unsafe { vocab.raw.charsmap.bytes() };
    if !charsmap.is_empty() {
        normalizers.push(NormalizerWrapper::Precompiled(Precompiled::from(charsmap).map_err(err)?));
    }
    if vocab.raw.remove_extra_whitespaces {
        let runs = ReplacePattern::Regex(" {2,}".to_string());
        normalizers.push(NormalizerWrapper::Replace(Replace::new(runs, " ").map_err(err)?));
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(err)?;
    let scheme = if vocab.raw.add_space_prefix { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, true)));
    let mut decoders = vec![DecoderWrapper::ByteFallback(ByteFallback::new())];
    decoders.push(DecoderWrapper::Metaspace(Metaspace::new(SPACE, scheme, true)));
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Control and unknown tokens are special; user-defined ones are found in the text as they are, before any merge.
fn add_tokens(tokenizer: &mut Tokenizer, vocab: &Vocab) -> Result<(), String> {
    let mut added = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let special = matches!(vocab.kind_of(id), TYPE_CONTROL | TYPE_UNKNOWN);
        if (special || vocab.kind_of(id) == TYPE_USER_DEFINED) && !token.is_empty() {
            added.push(AddedToken::from(token.clone(), special).normalized(false));
        }
    }
    tokenizer.add_tokens(added).map(|_| ()).map_err(err)
}

unsafe fn borrow(raw: &TmVocab) -> Result<Vocab<'_>, String> {
    let slices: &[TmSlice] = slice(raw.tokens, raw.token_count);
    let scores: &[f32] = if raw.scores.is_null() { &[] } else { slice(raw.scores, raw.token_count) };
    let types: &[i32] = if raw.types.is_null() { &[] } else { slice(raw.types, raw.token_count) };
    if slices.is_empty() {
        return Err("the vocabulary is empty".to_string());
    }
    let mut tokens = Vec::with_capacity(slices.len());
    for (id, token) in slices.iter().enumerate() {
        let bytes = token.bytes();
        let mut token = std::str::from_utf8(bytes).map_err(|_| format!("token {id} is not valid UTF-8"))?.to_string();
        // Converters spell the spaces of user-defined tokens as they are; the model works on the mark.
        if raw.kind != KIND_BPE && token.contains(' ') {
            token = token.replace(' ', &SPACE.to_string());
        }
        tokens.push(token);
    }
    if raw.kind != KIND_BPE && scores.iter().any(|s| s.is_nan()) {
        return Err("a score is not a number".to_string());
    }
    if raw.kind != KIND_BPE && scores.is_empty() {
        return Err("the key tokenizer.ggml.scores is missing".to_string());
    }
    Ok(Vocab { tokens, scores, types, merges: slice(raw.merges, raw.merge_count), raw })
}

unsafe fn build(raw: &TmVocab) -> Result<TmTokenizer, String> {
    let vocab = borrow(raw)?;
    let mut tokenizer = match raw.kind {
        KIND_BPE => byte_level_bpe(&vocab)?,
        KIND_SPM => sentencepiece_bpe(&vocab)?,
        KIND_UNIGRAM => unigram(&vocab)?,
        kind => return Err(format!("vocabulary kind {kind} is not known")),
    };
    add_tokens(&mut tokenizer, &vocab)?;
    let id = |wanted: bool, id: i64| -> Vec<u32> {
        let in_range = id >= 0 && (id as u64) < vocab.tokens.len() as u64;
        if wanted && in_range {
            vec![id as u32]
        } else {
            Vec::new()
        }
    };
    TmTokenizer::new(tokenizer, id(raw.add_bos, raw.bos_id), id(raw.add_eos, raw.eos_id))
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_from_vocab(vocab: *const TmVocab, error: *mut TmBytes) -> *mut TmTokenizer {
    boxed(guard(error, || build(&*vocab)))
}
