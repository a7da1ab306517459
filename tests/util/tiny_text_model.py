"""Makes a folder with the tiny model of tests/data and a tokenizer of bytes, so that text goes in and comes out.

The texts mean nothing; they are the same each time."""
import json
import os

BYTES = 256
TEMPLATE = ("{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


def byte_characters():
    """GPT-2's table: the character that stands for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(BYTES):
        if byte in shown:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(BYTES + extra)
            extra += 1
    return table


def make(source, target):
    """source: tests/data/tiny/stories260k, target: a folder that is there. Returns target."""
    for name in ("generation_config.json", "model.safetensors"):
        os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(target, name))
    with open(os.path.join(source, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config["max_position_embeddings"] = 4096  # texts of bytes are long
    vocab = {character: byte for byte, character in byte_characters().items()}
    vocab.update({f"word{i}": i for i in range(BYTES, config["vocab_size"])})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": level, "post_processor": None, "decoder": level,
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                           "merges": []}}
    files = {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": {"chat_template": TEMPLATE}}
    for name, content in files.items():
        with open(os.path.join(target, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    return target
