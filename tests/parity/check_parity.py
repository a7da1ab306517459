#!/usr/bin/env python3
"""Runs `tokenmill verify` and the independent checker over the goldens, with every field required.

  check_parity.py TOKENMILL [--only NAME,...] [--keep DIR]

The models are in $TOKENMILL_TEST_MODELS, the goldens in $TOKENMILL_TEST_SHARED. Exits with 77, "not run", where either
is unset; with 1 when a check fails. --only narrows to the named checks (see the output), --keep leaves what the engine
wrote in DIR.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

NOT_RUN = 77
FAMILIES = ["llama-tied", "llama-untied", "llama-rope3", "llama-yarn", "llama-bias", "mistral-swa", "qwen2", "qwen3",
            "gemma3", "stories260k"]
GEN_FIELDS = "prompt_ids,gen_ids,logprobs,prompt_logprobs,last_hidden,forced_logprobs,forced_argmax"
TINY_FIELDS = "greedy16,last_logits,argmax_per_pos,prompt_logprobs,last_hidden"

# name, model, golden, the checker's mode, dtype
GEN = [
    ("gen-smollm2-f32", "smollm2-135m-f32", "smollm2_f32", "f32", "float32"),
    # Rounded to bf16, the weights are not the golden's: 0.7 of the values change, so fp32 arithmetic is judged as bf16.
    ("gen-smollm2-sharded", "smollm2-135m-bf16-sharded", "smollm2_f32", "bf16", "float32"),
    ("gen-gemma3-f32", "gemma3-270m-f32", "gemma3_f32", "f32", "float32"),
    ("gen-smollm2-bf16", "smollm2-135m-bf16", "smollm2_f32", "bf16", "bfloat16"),
    ("gen-gemma3-bf16", "gemma3-270m-bf16", "gemma3_f32", "bf16", "bfloat16"),
    ("gen-smollm2-gguf-f32", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2_f32", "f32", "float32"),
    ("gen-gemma3-gguf-f32", "gguf/gemma-3-270m-q4_k_m.gguf", "gemma3_f32", "f32", "float32"),
    ("gen-smollm2-gguf-q8", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2_f32", "q8", "auto"),
    ("gen-gemma3-gguf-q8", "gguf/gemma-3-270m-q4_k_m.gguf", "gemma3_f32", "q8", "auto"),
]
# golden set: the folders and files that hold its tokenizer
TOKENIZERS = {
    "deepseek_v3": ["tokenizers/deepseek_v3"],
    "gemma3": ["tokenizers/gemma3", "gemma3-270m-bf16", "gguf/gemma-3-270m-q4_k_m.gguf"],
    "gpt4o": ["tokenizers/gpt4o"],
    "gptoss": ["tokenizers/gptoss"],
    "llama2": ["tokenizers/llama2"],
    "llama3_1": ["tokenizers/llama3_1"],
    "minilm": ["minilm-l6-v2"],
    "qwen3": ["tokenizers/qwen3"],
    "smollm2": ["smollm2-135m-bf16", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"],
}


class Parity:
    def __init__(self, tokenmill, models, shared, work, only):
        self.tokenmill, self.models, self.shared, self.work = tokenmill, models, shared, work
        self.only = only
        self.failed, self.ran = [], 0

    def wanted(self, name):
        return not self.only or name in self.only

    def check(self, name, verify, golden, checker, statuses=(0,)):
        """verify: arguments of `tokenmill verify`; golden, checker: what check_golden.py gets before and after OUT."""
        if not self.wanted(name):
            return
        self.ran += 1
        out = self.work / (name + ".jsonl")
        begin = time.monotonic()
        run = subprocess.run([self.tokenmill, "verify", *verify, "--out", str(out)], stderr=subprocess.PIPE, text=True)
        seconds = time.monotonic() - begin
        text, good = run.stderr, run.returncode in statuses
        if good:
            command = [sys.executable, str(self.shared / "check_golden.py"), *golden, str(out), *checker]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            text, good = result.stdout, result.returncode == 0
        print(f"{'ok    ' if good else 'FAILED'} {name} ({seconds:.1f} s, exit code {run.returncode})")
        print("".join(f"       {line}\n" for line in text.splitlines()), end="", flush=True)
        if not good:
            self.failed.append(name)

    def tiny(self):
        folder = self.shared / "tiny"
        # Families that are not built yet are named and make the exit code 1.
        self.check("tiny-v5", ["--kind", "tiny", "--in", str(folder)], ["tiny", str(folder)],
                   ["--only", ",".join(FAMILIES), "--require", TINY_FIELDS], statuses=(0, 1))
        old = self.work / "tiny-v4"
        old.mkdir(exist_ok=True)
        for family in FAMILIES:
            target = old / family
            shutil.copytree(folder / family, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
            shutil.copyfile(folder / family / "config.v4.json", target / "config.json")
        self.check("tiny-v4", ["--kind", "tiny", "--in", str(old)], ["tiny", str(folder)],
                   ["--only", ",".join(FAMILIES), "--require", TINY_FIELDS])
        one = folder / FAMILIES[0]
        self.check("tiny-one", ["--kind", "tiny", "--in", str(one) + "/"], ["tiny", str(folder)],
                   ["--only", FAMILIES[0], "--require", TINY_FIELDS])

    def gen(self):
        for name, model, golden, mode, dtype in GEN:
            path = self.shared / "golden" / (golden + ".jsonl")
            self.check(name, ["--kind", "gen", "--model-path", str(self.models / model), "--in", str(path), "--dtype",
                              dtype], ["gen", str(path)], ["--mode", mode, "--require", GEN_FIELDS])

    def text(self):
        for golden, sources in TOKENIZERS.items():
            for source in sources:
                name = f"{golden}-{'gguf' if source.endswith('.gguf') else source.split('/')[0]}"
                model = ["--model-path", str(self.models / source)]
                encode = self.shared / "tok" / f"{golden}.encode.jsonl"
                self.check("encode-" + name, ["--kind", "encode", *model, "--in", str(self.shared / "tok" / "corpus.jsonl")],
                           ["encode", str(encode)], ["--require", "ids,ids_special,dec,dec_skip"])
                stream = self.shared / "tok" / f"{golden}.stream.jsonl"
                if stream.exists():
                    self.check("stream-" + name, ["--kind", "stream", *model, "--in", str(stream)],
                               ["stream", str(stream)], [])
        chat = self.shared / "chat"
        self.check("chat", ["--kind", "chat", "--in", str(chat), "--templates", str(chat / "templates")],
                   ["chat", str(chat / "goldens.jsonl")], [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenmill")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep")
    args = parser.parse_args()
    models, shared = os.environ.get("TOKENMILL_TEST_MODELS"), os.environ.get("TOKENMILL_TEST_SHARED")
    if not models or not shared:
        print("not run: TOKENMILL_TEST_MODELS and TOKENMILL_TEST_SHARED must name the models and the goldens")
        return NOT_RUN
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(args.keep or temporary)
        work.mkdir(parents=True, exist_ok=True)
        parity = Parity(args.tokenmill, pathlib.Path(models), pathlib.Path(shared), work,
                        [name for name in args.only.split(",") if name])
        parity.text()
        parity.tiny()
        parity.gen()
    print(f"{parity.ran - len(parity.failed)} of {parity.ran} checks passed" +
          (", failed: " + ", ".join(parity.failed) if parity.failed else ""))
    return 1 if parity.failed or not parity.ran else 0


if __name__ == "__main__":
    sys.exit(main())
