#!/usr/bin/env python3
"""The checker must fail when one value of one field is wrong, and when a field is missing.

  checker_test.py TOKENMILL TINY_FOLDER

Makes verify's output for one tiny model, sees it pass, then spoils each field in turn. For the kinds that need large
models (gen) or none (encode, stream, chat) it builds lines from the golden format itself.
"""

import base64
import copy
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODEL = "llama-tied"


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def run_checker(*args):
    result = subprocess.run([sys.executable, str(HERE / "check_golden.py"), *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    return result.returncode, result.stdout


def spoiled(value):
    """One value of `value` changed by more than any tolerance."""
    if isinstance(value, list):
        at = len(value) - 1
        return value[:at] + [spoiled(value[at])]
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int):
        return value + 1
    return value + 100.0


class Spoiler:
    """Golden lines in a file (or tiny folder) and an engine's lines that agree with them."""

    def __init__(self, work):
        self.work, self.bad = work, []

    def expect(self, what, passes, *args):
        code, text = run_checker(*args)
        if (code == 0) != passes:
            self.bad.append(f"{what}: the checker should have {'passed' if passes else 'failed'}:\n{text}")
        print(f"{'ok' if (code == 0) == passes else 'WRONG'}: {what}")

    def every_field(self, kind, golden, lines, fields, options, line=0, fields_missing=()):
        """lines pass; spoiling any of `fields` of one line fails, and so does dropping one of `fields_missing`."""
        out = self.work / "engine.jsonl"
        write_lines(out, lines)
        self.expect(f"{kind}: as it is", True, kind, golden, out, *options)
        for field in fields:
            changed = copy.deepcopy(lines)
            changed[line][field] = spoiled(changed[line][field])
            write_lines(out, changed)
            self.expect(f"{kind}: {field} spoiled", False, kind, golden, out, *options)
        for field in fields_missing:
            changed = copy.deepcopy(lines)
            del changed[line][field]
            write_lines(out, changed)
            self.expect(f"{kind}: {field} missing", False, kind, golden, out, "--require", field, *options)
        write_lines(out, lines[:-1])
        self.expect(f"{kind}: last line missing", False, kind, golden, out, *options)


def tiny(spoiler, tokenmill, folder):
    models = spoiler.work / "models"
    shutil.copytree(folder / MODEL, models / MODEL)
    out = spoiler.work / "tiny.jsonl"
    subprocess.run([tokenmill, "verify", "--kind", "tiny", "--in", str(models), "--out", str(out)], check=True)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    fields = ["greedy16", "last_logits", "prompt_logprobs", "last_hidden"]
    spoiler.every_field("tiny", models, lines, fields, [], fields_missing=[*fields, "argmax_per_pos"])
    # One near tie is forgiven in argmax_per_pos, two wrong values are not.
    changed = copy.deepcopy(lines)
    changed[0]["argmax_per_pos"] = [value + 1 for value in changed[0]["argmax_per_pos"][:2]] + changed[0][
        "argmax_per_pos"][2:]
    write_lines(out, changed)
    spoiler.expect("tiny: argmax_per_pos spoiled twice", False, "tiny", models, out)


def gen(spoiler):
    ids, logprobs = list(range(10, 74)), [-0.5 - 0.001 * i for i in range(64)]
    hidden = [0.25 * (i % 7) - 0.5 for i in range(16)]
    golden = {"id": "a", "prompt_ids": [1, 2, 3], "gen_ids": ids, "logprobs": logprobs,
              "prompt_logprobs": [None, -1.0, -2.0],
              "top5": [[[i, l], [i + 100, l - 1]] for i, l in zip(ids, logprobs)],
              "last_hidden_f32_b64": base64.b64encode(struct.pack("<16f", *hidden)).decode()}
    line = {"id": "a", "prompt_ids": [1, 2, 3], "gen_ids": ids, "logprobs": logprobs,
            "prompt_logprobs": [None, -1.0, -2.0], "last_hidden": hidden, "forced_logprobs": logprobs,
            "forced_argmax": ids}
    path = spoiler.work / "golden.jsonl"
    write_lines(path, [golden, {**golden, "id": "b"}])
    # forced_argmax is counted, not judged: its absence is what can fail.
    fields = ["prompt_ids", "gen_ids", "logprobs", "prompt_logprobs", "last_hidden", "forced_logprobs"]
    spoiler.every_field("gen", path, [line, {**line, "id": "b"}], fields, ["--mode", "f32"],
                        fields_missing=[*[f for f in fields if f != "gen_ids"], "forced_argmax"])
    write_lines(spoiler.work / "engine.jsonl", [{**line, "forced_argmax": spoiled(ids)}, {**line, "id": "b"}])
    code, text = run_checker("gen", path, spoiler.work / "engine.jsonl")
    if "1 flips in 128" not in text:
        spoiler.bad.append("gen: forced_argmax spoiled, but no flip is counted:\n" + text)


def text_kinds(spoiler):
    path = spoiler.work / "golden.jsonl"
    write_lines(path, [{"ids": [5, 6], "pre": [1], "dec": "a b", "dec_skip": "b"}] * 2)
    line = {"ids": [5, 6], "ids_special": [1, 5, 6], "dec": "a b", "dec_skip": "b"}
    fields = list(line)
    spoiler.every_field("encode", path, [line, line], fields, [],
                        fields_missing=[field for field in fields if field != "ids"])
    write_lines(path, [{"kind": "line", "exact": ["a", "b"], "exact_flush": "c", "full": "abc"}] * 2)
    line = {"pieces": ["a", "b"], "flush": "c"}
    spoiler.every_field("stream", path, [line, line], list(line), [])
    golden = {"template": "t", "conv": "c", "text": "hello"}
    write_lines(path, [golden, {"template": "t", "conv": "d", "check": "must_fail"}])
    spoiler.every_field("chat", path, [{"text": "hello"}, {"error": "raised"}], ["text"], [])
    write_lines(spoiler.work / "engine.jsonl", [{"text": "hello"}, {"text": "no error"}])
    spoiler.expect("chat: must raise, but did not", False, "chat", path, spoiler.work / "engine.jsonl")


def main():
    tokenmill, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as work:
        spoiler = Spoiler(pathlib.Path(work))
        tiny(spoiler, tokenmill, folder)
        gen(spoiler)
        text_kinds(spoiler)
    print("\n".join(spoiler.bad))
    return 1 if spoiler.bad else 0


if __name__ == "__main__":
    sys.exit(main())
