#!/usr/bin/env python3
"""What the Python binding costs, over a tiny model whose own work is small.

    PYTHONPATH=build/python bench/bench_python.py [--tokenmill build/bin/tokenmill] [MODEL_FOLDER]

CPU seconds of the calling thread are what the binding and Python take: they do not depend on what else the machine does.
Throughput with a busy Python thread beside the engine shows whether the GIL holds the engine up; the same busy thread in
a process of its own beside the C++ program is the yardstick.
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import tokenmill

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def engine(model):
    return tokenmill.Engine(model_path=model, skip_tokenizer_init=True, log_level="error", num_threads=1)


def per_token(name, tokens, cpu, wall):
    print(f"{name:44} {cpu / tokens * 1e6:7.2f} us CPU a token on the calling thread, {tokens / wall:9.0f} tokens/s")


def batch(llm, params, prompts):
    start, cpu = time.perf_counter(), time.thread_time()
    outputs = llm.generate(input_ids=prompts, sampling_params=params)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - start
    per_token(f"batch of {len(prompts)} prompts, {params['max_new_tokens']} tokens", sum(len(o["output_ids"]) for o in outputs),
              cpu, wall)


def streams(llm, params, count):
    start, cpu = time.perf_counter(), time.thread_time()
    tokens = sum(len(chunk["output_ids"]) for chunk in llm.generate(
        input_ids=[[1, 2 + i] for i in range(count)], sampling_params=params, stream=True))
    per_token(f"one streamed list of {count}", tokens, time.thread_time() - cpu, time.perf_counter() - start)


def async_streams(llm, params, count):
    async def one(i):
        tokens = 0
        async for chunk in await llm.async_generate(input_ids=[1, 2 + i], sampling_params=params, stream=True):
            tokens += len(chunk["output_ids"])
        return tokens

    async def main():
        return sum(await asyncio.gather(*[one(i) for i in range(count)]))

    start, cpu = time.perf_counter(), time.thread_time()
    tokens = asyncio.run(main())
    per_token(f"{count} asynchronous streams", tokens, time.thread_time() - cpu, time.perf_counter() - start)


def spin(stop):
    while not stop.is_set():
        sum(range(1000))


def with_busy_thread(llm, params, rounds):
    """Tokens a second of 64 streams; a Python thread spins in this process."""
    rates = []
    for _ in range(rounds):
        stop = threading.Event()
        thread = threading.Thread(target=spin, args=(stop,))
        thread.start()
        before, start = llm.stats()["generated_tokens"], time.perf_counter()
        call = llm.generate(input_ids=[[1, 2 + i] for i in range(64)], sampling_params=params, stream=True)
        while llm.stats()["finished"] % 64 or llm.stats()["running"] or llm.stats()["queue"]:
            time.sleep(0.005)
        rates.append((llm.stats()["generated_tokens"] - before) / (time.perf_counter() - start))
        stop.set()
        thread.join()
        list(call)
    return statistics.median(rates)


def cplusplus_with_busy_process(program, model, params, rounds):
    """Tokens a second of the same work by the C++ program: from e2e_latency, so loading does not count."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "in.jsonl"), os.path.join(folder, "out.jsonl")
        with open(source, "w", encoding="utf-8") as file:
            for i in range(64):
                file.write(json.dumps({"input_ids": [1, 2 + i], "sampling_params": params}) + "\n")
        for _ in range(rounds):
            stop = multiprocessing.Event()
            process = multiprocessing.Process(target=spin, args=(stop,))
            process.start()
            subprocess.run([program, "generate", "-m", model, "--skip-tokenizer-init", "--num-threads", "1", "--input",
                            source, "--output", target, "--overwrite", "--log-level", "error"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stop.set()
            process.join()
            with open(target, encoding="utf-8") as file:
                outputs = [json.loads(line) for line in file]
            tokens = sum(len(output["output_ids"]) for output in outputs)
            rates.append(tokens / max(output["meta_info"]["e2e_latency"] for output in outputs))
    return statistics.median(rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.path.join(ROOT, "tests", "data", "tiny", "stories260k"))
    parser.add_argument("--tokenmill", help="the C++ program, for comparison")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    long = {**params, "max_new_tokens": 400}
    with engine(args.model) as llm:
        batch(llm, params, [[1, 2 + i % 500] for i in range(10_000)])
        batch(llm, {**params, "max_new_tokens": 128}, [[1, 2 + i % 500] for i in range(512)])
        streams(llm, long, 64)
        async_streams(llm, long, 64)
        print(f"64 streams, a busy Python thread beside      {with_busy_thread(llm, long, args.rounds):9.0f} tokens/s")
    if args.tokenmill:
        rate = cplusplus_with_busy_process(args.tokenmill, args.model, long, args.rounds)
        print(f"the C++ program, the same in a process beside {rate:8.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
