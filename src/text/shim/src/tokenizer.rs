//! Text to ids and back, over the `tokenizers` crate.

use crate::ffi::{boxed, guard, quietly, slice, text, unbox, TmBytes, TmIds};
use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::{DecoderWrapper, Tokenizer};

pub struct TmTokenizer {
    inner: Tokenizer,
    /// Added tokens by id; true: special.
    added: HashMap<u32, bool>,
    vocab_size: OnceLock<i64>,
    /// Ids put around every text with special tokens, for vocabularies without a post-processor of their own.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl TmTokenizer {
    pub fn new(mut inner: Tokenizer, prefix: Vec<u32>, suffix: Vec<u32>) -> Result<Self, String> {
        // What a file says about batches of training length does not hold for prompts.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder().iter().map(|(&id, token)| (id, token.special)).collect();
        Ok(TmTokenizer { inner, added, vocab_size: OnceLock::new(), prefix, suffix })
    }

    fn from_json(json: &[u8]) -> Result<Self, String> {
        let inner = Tokenizer::from_bytes(text(json, "the file")?).map_err(|e| e.to_string())?;
        Self::new(inner, Vec::new(), Vec::new())
    }

    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| e.to_string())?;
        let ids = encoding.get_ids();
        if !add_special || (self.prefix.is_empty() && self.suffix.is_empty()) {
            return Ok(ids.to_vec());
        }
        Ok([&self.prefix, ids, &self.suffix].concat())
    }

    fn vocab_size(&self) -> i64 {
        *self.vocab_size.get_or_init(|| {
            let model_size = self.inner.get_vocab_size(false) as u32;
            let largest_added = self.added.keys().max().map_or(0, |&id| i64::from(id) + 1);
            // Without a hole the ids of the model are 0 .. size - 1; copying its whole table costs far more than asking.
            let largest = if (0..model_size).all(|id| self.inner.id_to_token(id).is_some()) {
                i64::from(model_size)
            } else {
                self.inner.get_vocab(true).values().max().map_or(0, |&id| i64::from(id) + 1)
            };
            largest.max(largest_added)
        })
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        match self.inner.get_decoder() {
            Some(decoder) => decoded_bytes(decoder, token),
            None => [b" ", token.as_bytes()].concat(), // Tokenizer::decode joins with spaces then
        }
    }

    fn is_byte_token(&self, id: u32) -> bool {
        let is_byte = |token: String| byte_token(&token).is_some();
        self.inner.get_decoder().is_some_and(has_byte_fallback) && self.inner.id_to_token(id).is_some_and(is_byte)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> tokenizers::Result<String> {
        let decoder = match self.inner.get_decoder() {
            Some(decoder) if has_byte_fallback(decoder) => decoder,
            _ => return self.inner.decode(ids, skip_special),
        };
        let added = self.inner.get_added_vocabulary();
        let tokens = ids.iter().filter_map(|&id| self.inner.id_to_token(id));
        let shown = tokens.filter(|token| !skip_special || !added.is_special_token(token));
        tokenizers::Decoder::decode(decoder, part_at_invalid_bytes(shown))
    }
}

/// ByteFallback makes every byte of a run U+FFFD where the run is not valid UTF-8 as a whole. What was valid so far has
/// been streamed by then, so it stays: an empty token between parts the run, and the rest becomes U+FFFD.
fn part_at_invalid_bytes(tokens: impl Iterator<Item = String>) -> Vec<String> {
    fn end_run(parted: &mut Vec<String>, run: &mut Vec<u8>) {
        if let Err(error) = std::str::from_utf8(run) {
            let at = parted.len() - run.len() + error.valid_up_to();
            if error.valid_up_to() > 0 {
                parted.insert(at, String::new());
            }
        }
        run.clear();
    }
    let (mut parted, mut run) = (Vec::new(), Vec::new());
    for token in tokens {
        match byte_token(&token) {
            Some(byte) => run.push(byte),
            None => end_run(&mut parted, &mut run),
        }
        parted.push(token);
    }
    end_run(&mut parted, &mut run);
    parted
}

fn has_byte_fallback(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_fallback),
        _ => false,
    }
}

/// What one token adds in the middle of a text: the decoder less what it does to a text's ends and to neighbours.
fn decoded_bytes(decoder: &DecoderWrapper, token: String) -> Vec<u8> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => byte_level(&token).unwrap_or_else(|| token.into_bytes()),
        DecoderWrapper::ByteFallback(_) => byte_token(&token).map_or_else(|| token.into_bytes(), |byte| vec![byte]),
        DecoderWrapper::Metaspace(metaspace) => token.replace(metaspace.get_replacement(), " ").into_bytes(),
        DecoderWrapper::Replace(_) => single(decoder, token).into_bytes(),
        DecoderWrapper::WordPiece(word_piece) => match token.strip_prefix(&word_piece.prefix) {
            Some(rest) => rest.as_bytes().to_vec(),
            None => [b" ", token.as_bytes()].concat(),
        },
        DecoderWrapper::BPE(bpe) => token.replace(&bpe.suffix, " ").into_bytes(),
        DecoderWrapper::Sequence(sequence) => {
            let mut token = token;
            for step in sequence.get_decoders() {
                match step {
                    DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => {}
                    DecoderWrapper::Replace(_) => token = single(step, token),
                    _ => {
                        let bytes = decoded_bytes(step, token);
                        match String::from_utf8(bytes) {
                            Ok(next) => token = next,
                            Err(e) => return e.into_bytes(), // part of a character: only bytes from here on
                        }
                    }
                }
            }
            token.into_bytes()
        }
        DecoderWrapper::CTC(_) | DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => token.into_bytes(),
    }
}

fn single(decoder: &DecoderWrapper, token: String) -> String {
    use tokenizers::Decoder;
    decoder.decode_chain(vec![token]).map(|parts| parts.concat()).unwrap_or_default()
}

/// "<0x0A>": SentencePiece's spelling of a byte.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 in their order.
/// None where the token has another character: it is spelt out.
fn byte_level(token: &str) -> Option<Vec<u8>> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let others = (0..=255u8).filter(|&b| !printable(b)).enumerate();
        let shifted = others.filter_map(|(n, b)| char::from_u32(0x100 + n as u32).map(|c| (c, b)));
        (0..=255u8).filter(|&b| printable(b)).map(|b| (char::from(b), b)).chain(shifted).collect()
    });
    token.chars().map(|c| table.get(&c).copied()).collect()
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_from_json(json: *const u8, size: usize, error: *mut TmBytes) -> *mut TmTokenizer {
    boxed(guard(error, || TmTokenizer::from_json(slice(json, size))))
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_free(tokenizer: *mut TmTokenizer) {
    unbox(tokenizer)
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_encode(
    tokenizer: *const TmTokenizer,
    data: *const u8,
    size: usize,
    add_special: bool,
    ids: *mut TmIds,
    error: *mut TmBytes,
) -> bool {
    let result = guard(error, || (*tokenizer).encode(text(slice(data, size), "the text")?, add_special));
    result.map(|vec| ids.write(TmIds::from_vec(vec))).is_some()
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_decode(
    tokenizer: *const TmTokenizer,
    ids: *const u32,
    count: usize,
    skip_special: bool,
    out: *mut TmBytes,
    error: *mut TmBytes,
) -> bool {
    let result = guard(error, || (*tokenizer).decode(slice(ids, count), skip_special).map_err(|e| e.to_string()));
    result.map(|text| out.write(TmBytes::from_vec(text.into_bytes()))).is_some()
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_token_bytes(tokenizer: *const TmTokenizer, id: u32) -> TmBytes {
    TmBytes::from_vec(quietly(|| (*tokenizer).token_bytes(id)).unwrap_or_default())
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_is_byte_token(tokenizer: *const TmTokenizer, id: u32) -> bool {
    quietly(|| (*tokenizer).is_byte_token(id)).unwrap_or(false)
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_is_special(tokenizer: *const TmTokenizer, id: u32) -> bool {
    let tokenizer = &*tokenizer;
    tokenizer.added.get(&id).copied().unwrap_or(false)
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_token_to_id(tokenizer: *const TmTokenizer, data: *const u8, size: usize) -> i64 {
    let token = std::str::from_utf8(slice(data, size)).ok();
    quietly(|| token.and_then(|t| (*tokenizer).inner.token_to_id(t)).map_or(-1, i64::from)).unwrap_or(-1)
}

#[no_mangle]
pub unsafe extern "C" fn tm_tokenizer_vocab_size(tokenizer: *const TmTokenizer) -> i64 {
    quietly(|| (*tokenizer).vocab_size()).unwrap_or(0)
}
