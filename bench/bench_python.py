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
import os
import statistics
import subprocess
import sys
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


def tokens_a_second(outputs):
    """From e2e_latency, so that loading and the reader's own pace do not count."""
    tokens = sum(output["meta_info"]["completion_tokens"] for output in outputs)
    return tokens / max(output["meta_info"]["e2e_latency"] for output in outputs)


def thread_times():
    """Thread -> (seconds on a processor, seconds it waited for one), as Linux counts them."""
    times = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
            ran, waited, _ = file.read().split()
        times[int(thread)] = (int(ran) / 1e9, int(waited) / 1e9)
    return times


def python_with_busy_thread(llm, params):
    """64 streams, read by this thread; a Python thread spins in this process. Tokens a second, and of the engine's
    thread the microseconds of CPU a token and the share of the time in which it neither ran nor waited for a processor:
    what a GIL in its way would cost."""
    stop = threading.Event()
    thread = threading.Thread(target=spin, args=(stop,))
    thread.start()
    try:
        before, start = thread_times(), time.perf_counter()
        outputs = [chunk for chunk in llm.generate(input_ids=[[1, 2 + i] for i in range(64)], sampling_params=params,
                                                   stream=True) if chunk["meta_info"]["finish_reason"]]
        wall, after = time.perf_counter() - start, thread_times()
    finally:
        stop.set()
        thread.join()
    ran, waited = max((after[i][0] - before[i][0], after[i][1] - before[i][1]) for i in before
                      if i not in (threading.get_native_id(), thread.native_id))
    return tokens_a_second(outputs), ran / (64 * params["max_new_tokens"]) * 1e6, max(0, 1 - (ran + waited) / wall)


def cplusplus_with_busy_process(program, model, params):
    """The same 64 streams in the C++ program; the Python thread spins in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        result = subprocess.run([program, "bench", "-m", model, "--skip-tokenizer-init", "--num-threads", "1",
                                 "--batch-sizes", "64", "--input-length", "2", "--output-length",
                                 str(params["max_new_tokens"]), "--prefill-length", "2", "--repeat", "1", "--no-roofs",
                                 "--json", "--log-level", "error"], check=True, stdout=subprocess.PIPE)
    finally:
        process.kill()
        process.wait()
    return json.loads(result.stdout)["decode"][0]["total_tokens_per_s"]


def busy(args, llm, params):
    """Takes turns, so that whatever else the machine does meets both; the ratio is the median of the turns' ratios."""
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(python_with_busy_thread(llm, params))
        if args.tokenmill:
            theirs.append(cplusplus_with_busy_process(args.tokenmill, args.model, params))
    rate, cpu, asleep = (statistics.median(values) for values in zip(*ours))
    print(f"64 streams, a busy Python thread beside       {rate:9.0f} tokens/s; the engine's thread: {cpu:.1f} us CPU a "
          f"token, asleep {asleep:.1%}")
    if theirs:
        ratio = statistics.median(a[0] / b for a, b in zip(ours, theirs))
        print(f"the C++ program, the same in a process beside {statistics.median(theirs):9.0f} tokens/s; Python's rate "
              f"over it, by turns: {ratio:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.path.join(ROOT, "tests", "data", "tiny", "stories260k"))
    parser.add_argument("--tokenmill", help="the C++ program, for comparison")
    parser.add_argument("--tokens", type=int, default=400, help="a stream, beside the busy thread")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    long = {**params, "max_new_tokens": 400}
    with engine(args.model) as llm:
        batch(llm, params, [[1, 2 + i % 500] for i in range(10_000)])
        batch(llm, {**params, "max_new_tokens": 128}, [[1, 2 + i % 500] for i in range(512)])
        streams(llm, long, 64)
        async_streams(llm, long, 64)
        busy(args, llm, {**params, "max_new_tokens": args.tokens})
    return 0


if __name__ == "__main__":
    sys.exit(main())
