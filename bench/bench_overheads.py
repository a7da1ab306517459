#!/usr/bin/env python3
"""What the cache and the trace cost and save with a real model, as processor time of whole runs, taken by turns.

  bench_overheads.py --tokenmill PROGRAM [--rounds 5] [--num-threads 1] MODEL

- no sharing: prompts of random ids; the run with the radix cache over the run without (goal: under 1.01): in the default
  pool, where the cache touches memory that the other never needs, and in one of 8,192 tokens, which both soon fill
- saved time: 64 questions on one 5-shot prefix; what the cache saved over saved tokens x the uncached run's cost of one
  (goal: at least 0.90; the tokens saved are a prompt's early ones, whose attention is the cheapest)
- trace: decoding with a trace file, times per step and a line per request over the same without (goal: under 1.01)

Processor time (user and system) does not see what else the machine does, but for shared caches and clocks. Start and load
are measured by a run of one token and taken off. Medians of the pairs' ratios; all pairs are printed.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile


def write_lines(path, prompts, new_tokens):
    with open(path, "w", encoding="utf-8") as file:
        for i, ids in enumerate(prompts):
            params = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
            file.write(json.dumps({"custom_id": str(i), "input_ids": ids, "sampling_params": params}) + "\n")


class Runner:
    def __init__(self, args, folder):
        self.base = [args.tokenmill, "generate", "--model-path", args.model, "--num-threads", str(args.num_threads),
                     "--no-progress", "--overwrite", "--log-level", "error", "--skip-tokenizer-init"]
        self.folder = folder

    def run(self, source, *flags):
        """Processor seconds, prompt tokens and cached tokens of one run."""
        output = os.path.join(self.folder, "out.jsonl")
        command = [*self.base, "--input", source, "--output", output, *flags]
        with open(os.path.join(self.folder, "log"), "wb") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log)
            _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            with open(log.name, encoding="utf-8") as text:
                sys.exit(f"{' '.join(command)} failed:\n{text.read()}")
        with open(output, encoding="utf-8") as lines:
            metas = [json.loads(line)["meta_info"] for line in lines]
        return (usage.ru_utime + usage.ru_stime, sum(meta["prompt_tokens"] for meta in metas),
                sum(meta["cached_tokens"] for meta in metas))


def by_turns(runner, source, rounds, start, flags_a, flags_b):
    """Pairs of processor seconds (a, b) without the start; which comes first alternates."""
    pairs = []
    for i in range(rounds):
        order = (flags_a, flags_b) if i % 2 == 0 else (flags_b, flags_a)
        seconds = [runner.run(source, *flags)[0] - start for flags in order]
        pairs.append(tuple(seconds) if i % 2 == 0 else tuple(reversed(seconds)))
    return pairs


def tell(name, pairs):
    ratios = [a / b for a, b in pairs]
    print(f"{name}: {statistics.median(ratios):.4f}   (pairs, s: " +
          ", ".join(f"{a:.2f}/{b:.2f}" for a, b in pairs) + ")", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokenmill", required=True, help="the program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(1)
    ids = lambda count: [draw.randrange(300, 30000) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)
        write_lines(path("start"), [[1]], 1)
        write_lines(path("unshared"), [ids(256) for _ in range(96)], 16)
        shots = ids(1000)
        write_lines(path("shots"), [shots + ids(40) for _ in range(64)], 1)
        write_lines(path("decode"), [ids(8) for _ in range(32)], 64)
        runner = Runner(args, folder)
        start = statistics.median(runner.run(path("start"))[0] for _ in range(3))
        print(f"{args.model}: start and load {start:.2f} s of processor time, taken off below")
        off = ("--disable-radix-cache",)
        tell("no sharing, cached over uncached", by_turns(runner, path("unshared"), args.rounds, start, (), off))
        small = ("--max-total-tokens", "8192")
        tell("the same in a full pool", by_turns(runner, path("unshared"), args.rounds, start, small, (*small, *off)))
        trace = ("--trace-path", path("trace.json"), "--show-time-cost", "--log-requests")
        tell("traced over not", by_turns(runner, path("decode"), args.rounds, start, trace, ()))
        shares = []
        for _ in range(args.rounds):
            cached, total, saved = runner.run(path("shots"))
            uncached, _, _ = runner.run(path("shots"), *off)
            shares.append((uncached - cached) / ((uncached - start) * saved / total))
        print(f"few-shot: {saved} of {total} prompt tokens saved; saved time over their cost: "
              f"{statistics.median(shares):.3f}   ({', '.join(f'{share:.3f}' for share in shares)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
