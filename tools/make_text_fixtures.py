#!/usr/bin/env python3
"""Writes the small tokenizers of tests/data/text: a byte-level BPE and a SentencePiece BPE, each as tokenizer.json and
as a GGUF file with the same vocabulary. Standard library only; the output is the same on every run.

    tools/make_text_fixtures.py tests/data/text
"""
import collections
import json
import pathlib
import re
import struct
import sys

TEXT = (
    "The engine reads a model and answers many prompts at once. A prompt becomes token ids, the ids become text again, "
    "and the text that streams out is the same text that comes out at the end. Small words like the, of, and, to, in "
    "are tokens; longer ones such as engine, answers, streams or tokenizer are made of pieces. Numbers like 2026 and "
    "3.14 and code like for (int i = 0; i < n; ++i) { sum += x[i]; } are text too. Déjà vu, naïve, größer, œuvre. "
    "Привет, мир. 日本語のテキスト。 中文字符。 🍕 and 🎉 are four bytes each.\n\nA second paragraph follows.\n"
) * 3
MERGES = 300
SPACE = "\u2581"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet():
    """GPT-2's spelling of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in printable}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(0x100 + n)
    return table


def train(words, count):
    """The `count` most frequent merges over words (tuples of symbols) with their numbers."""
    words = dict(words)
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, number in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += number
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        merged = {}
        for word, number in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i:i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + number
        words = merged
    return merges


def added(ids, names):
    return [{"id": i, "content": n, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, n in zip(ids, names)]


def byte_level_bpe():
    table = byte_alphabet()
    words = collections.Counter(
        tuple(table[b] for b in w.encode()) for w in re.findall(r" ?\w+| ?[^\s\w]+|\s+", TEXT))
    merges = train(words, MERGES)
    tokens = SPECIALS + [table[b] for b in range(256)]
    tokens += list(dict.fromkeys(a + b for a, b in merges))
    vocab = {t: i for i, t in enumerate(tokens)}
    return tokens, merges, {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added(range(3), SPECIALS),
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": [f"{a} {b}" for a, b in merges]}}


def sentencepiece_bpe():
    text = SPACE + TEXT.replace(" ", SPACE)
    words = collections.Counter(tuple(w) for w in re.findall(f"{SPACE}?[^{SPACE}]+", text))
    pieces = list(dict.fromkeys(a + b for a, b in train(words, MERGES)))
    letters = sorted(c for c in set(text) if c.isascii() or c in SPACE + "éüöïàœß日本語")
    letters = [c for c in letters if c != "\n"]
    names = ["<unk>", "<s>", "</s>"]
    tokens = names + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for rank, piece in enumerate(pieces + letters):
        if piece not in tokens:
            tokens.append(piece)
            types.append(1)
            scores.append(-float(rank))
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        if types[i] != 1:
            continue
        cuts = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in vocab and token[k:] in vocab]
        merges += [(scores[i], pair) for pair in sorted(cuts, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    merges.sort(key=lambda m: (m[0], len(m[1][0]), len(m[1][1])), reverse=True)
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return tokens, types, scores, {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added(range(3), names),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}},
                                    {"Sequence": {"id": "B", "type_id": 0}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": [list(pair) for _, pair in merges]}}


def gguf(metadata):
    """Version 3, little-endian, one small tensor. Values: str, bool, int, or (element type, list)."""
    def string(text):
        raw = text.encode()
        return struct.pack("<Q", len(raw)) + raw

    def value(v):
        if isinstance(v, str):
            return struct.pack("<I", 8) + string(v)
        if isinstance(v, bool):
            return struct.pack("<IB", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        kind, items = v
        pack = {8: string, 6: lambda x: struct.pack("<f", x), 5: lambda x: struct.pack("<i", x)}[kind]
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(pack(x) for x in items)

    out = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata))
    for key, v in metadata.items():
        out += string(key) + value(v)
    out += string("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    return out + bytes(-len(out) % 32) + struct.pack("<8f", *range(8))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    root = pathlib.Path(sys.argv[1])
    tokens, merges, tokenizer = byte_level_bpe()
    write_json(root / "bpe/tokenizer.json", tokenizer)
    write_json(root / "bpe/tokenizer_config.json", {
        "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE}]})
    (root / "bpe.gguf").write_bytes(gguf({
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": (8, tokens),
        "tokenizer.ggml.token_type": (5, [3] * 3 + [1] * (len(tokens) - 3)),
        "tokenizer.ggml.merges": (8, [f"{a} {b}" for a, b in merges]),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE}))
    tokens, types, scores, tokenizer = sentencepiece_bpe()
    write_json(root / "spm/tokenizer.json", tokenizer)
    write_json(root / "spm/tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    (root / "spm.gguf").write_bytes(gguf({
        "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": (8, tokens), "tokenizer.ggml.scores": (6, scores),
        "tokenizer.ggml.token_type": (5, types), "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}))


main()
