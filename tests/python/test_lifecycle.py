"""Cancelling, dropping, interrupting, forking, leaving: what ends requests and what does not disturb the process."""
import asyncio
import gc
import os
import threading
import time

import pytest

import tokenmill
from conftest import TINY, demo_model_path, make_tiny, wait_until_idle

LONG = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
# A request that is still running whenever a test gets round to ending it: a second at least.
SLOW = {"temperature": 0, "max_new_tokens": 300, "ignore_eos": True,
        "custom_logit_processor": lambda output_ids, logits: time.sleep(0.005)}
IDS = [1, 5, 9, 13]
OPEN = f"""
import sys, tokenmill
llm = tokenmill.Engine(model_path={TINY!r}, skip_tokenizer_init=True, log_level="error", num_threads=1)
long = {LONG!r}
"""


@pytest.fixture
def engine():
    with make_tiny(disable_radix_cache=True) as engine:
        yield engine


def tokens_after(engine, act):
    """Tokens that are generated after act() has returned."""
    before = engine.stats()["generated_tokens"]
    act()
    wait_until_idle(engine)
    return engine.stats()["generated_tokens"] - before


def test_closing_a_stream_frees_its_blocks(engine):
    stream = engine.generate(input_ids=IDS, sampling_params=SLOW, stream=True)
    next(stream)
    assert tokens_after(engine, stream.close) < 250
    assert list(stream) == []
    assert engine.stats()["aborted"] == 1


def test_dropping_a_stream(engine):
    for started in (True, False):
        stream = engine.generate(input_ids=[IDS, IDS], sampling_params=SLOW, stream=True)
        if started:
            next(stream)
        del stream
        gc.collect()
        wait_until_idle(engine)
    assert engine.stats()["aborted"] == 4


def test_breaking_out_of_a_loop(engine):
    for _ in engine.generate(input_ids=IDS, sampling_params=LONG, stream=True):
        break
    wait_until_idle(engine)


def test_dropping_an_asynchronous_stream(engine):
    async def main(started, close):
        stream = await engine.async_generate(input_ids=IDS, sampling_params=SLOW, stream=True)
        if started:
            await stream.__anext__()
        if close:
            await stream.aclose()
            assert [chunk async for chunk in stream] == []
        del stream
        gc.collect()
        await asyncio.sleep(0)

    for started in (True, False):
        for close in (True, False):
            asyncio.run(main(started, close))
            wait_until_idle(engine)
    assert engine.stats()["aborted"] == 4


def test_cancelling_tasks(engine):
    async def main(stream):
        async def consume():
            if not stream:
                return await engine.async_generate(input_ids=[IDS] * 4, sampling_params=SLOW)
            return [chunk async for chunk in
                    await engine.async_generate(input_ids=[IDS] * 4, sampling_params=SLOW, stream=True)]

        task = asyncio.create_task(consume())
        while engine.stats()["running"] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for stream in (True, False):
        asyncio.run(main(stream))
        wait_until_idle(engine)
    assert engine.stats()["aborted"] == 8


def test_asyncio_timeout(engine):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.async_generate(input_ids=[IDS] * 64, sampling_params=LONG), 0.05)

    asyncio.run(main())
    wait_until_idle(engine)


def test_a_loop_that_ends_with_calls_open(engine):
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(engine.async_generate(input_ids=IDS, sampling_params=LONG, stream=True))
    loop.close()
    del stream
    gc.collect()
    wait_until_idle(engine)
    assert asyncio.run(engine.async_generate(input_ids=IDS, sampling_params={"max_new_tokens": 1}))


def test_abort_by_id(engine):
    stream = engine.generate(input_ids=[IDS, IDS], sampling_params=SLOW, stream=True, rid=["a", "b"])
    next(stream)
    engine.abort("a")
    engine.abort("no such request")
    last = {chunk["index"]: chunk for chunk in stream}
    assert last[0]["meta_info"]["finish_reason"] == {"type": "abort", "message": "The request was aborted."}
    assert last[1]["meta_info"]["finish_reason"]["type"] == "length"


def test_abort_all_and_flush(engine):
    stream = engine.generate(input_ids=[IDS] * 8, sampling_params=SLOW, stream=True)
    next(stream)
    assert engine.flush_cache() is False
    engine.abort_all()
    assert {chunk["meta_info"]["finish_reason"]["type"] for chunk in stream
            if chunk["meta_info"]["finish_reason"]} == {"abort"}
    wait_until_idle(engine)
    assert engine.flush_cache() is True


def test_shutdown_ends_waiting_calls():
    engine = make_tiny()
    stream = engine.generate(input_ids=[IDS] * 64, sampling_params=LONG, stream=True)
    next(stream)
    caught = []

    def work():
        try:
            engine.generate(input_ids=[IDS] * 512, sampling_params=LONG)
        except tokenmill.EngineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while engine.stats()["queue"] == 0:
        time.sleep(0.001)
    start = time.monotonic()
    engine.shutdown()
    assert time.monotonic() - start < 1
    thread.join()
    assert caught == ["The engine was shut down."]
    with pytest.raises(tokenmill.EngineError, match="The engine was shut down."):
        for _ in stream:
            pass
    engine.shutdown()
    with pytest.raises(RuntimeError, match="The engine was shut down."):
        engine.generate(input_ids=IDS)
    with pytest.raises(RuntimeError, match="The engine was shut down."):
        asyncio.run(engine.async_generate(input_ids=IDS))
    assert engine.get_all_child_pids() == []


def test_nothing_runs_after_shutdown():
    engine = make_tiny()
    stream = engine.generate(input_ids=[IDS] * 64, sampling_params=LONG, stream=True)
    next(stream)
    assert engine.stats()["running"] > 0
    engine.shutdown()
    stats = engine.stats()
    assert (stats["running"], stats["queue"], stats["blocks_free"]) == (0, 0, stats["blocks_total"])


def test_shutdown_while_a_list_is_tokenised(text_engine):
    texts = ["ab " * 20_000] * 4000
    started = threading.Event()
    caught = []

    def work():
        started.set()
        with pytest.raises(tokenmill.EngineError, match="The engine was shut down.") as error:
            text_engine.generate(texts, {"max_new_tokens": 1})
        caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    time.sleep(0.5)
    start = time.monotonic()
    text_engine.shutdown()
    thread.join()
    assert caught and time.monotonic() - start < 20  # all of it would take minutes


def test_cancelling_while_a_list_is_tokenised(text_engine):
    async def main():
        task = asyncio.create_task(text_engine.async_generate(["ab " * 20_000] * 4000, {"max_new_tokens": 1}))
        while text_engine.stats()["requests"] < 4000:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    stats = wait_until_idle(text_engine, 60)
    assert stats["aborted"] == 4000 and stats["steps"] == 0


def test_the_loop_goes_on_while_a_prompt_is_tokenised(text_engine):
    async def main():
        turns = 0
        task = asyncio.create_task(text_engine.async_generate("ab " * 2_000_000, {"max_new_tokens": 1}))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.001)
        with pytest.raises(ValueError, match="is longer than the model's context length"):
            await task
        return turns

    assert asyncio.run(main()) > 10


def test_an_engine_lives_as_long_as_its_streams():
    params = {"max_new_tokens": 20, "ignore_eos": True}
    assert len(list(make_tiny().generate(input_ids=IDS, sampling_params=params, stream=True))) == 20

    async def main():
        return len([chunk async for chunk in
                    await make_tiny().async_generate(input_ids=IDS, sampling_params=params, stream=True)])

    assert asyncio.run(main()) == 20


def test_two_engines_at_once(tiny):
    with make_tiny(page_size=1) as other:
        params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        assert other.generate(input_ids=IDS, sampling_params=params)["output_ids"] == tiny.generate(
            input_ids=IDS, sampling_params=params)["output_ids"]


def test_fork_after_use(python):
    result = python(OPEN + """
import os
llm.generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 1})
stream = llm.generate(input_ids=[1, 2], sampling_params=long, stream=True)
next(stream)
child = os.fork()
if child == 0:
    for call in (lambda: llm.generate(input_ids=[1, 2]), lambda: llm.stats(), lambda: llm.abort_all()):
        try:
            call()
        except RuntimeError as error:
            assert "fork()" in str(error), error
        else:
            os._exit(3)
    llm.shutdown()  # the parent's engine is not the child's to end
    sys.exit(7)  # through the interpreter's own clean-up
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(len(llm.generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 3, "ignore_eos": True})["output_ids"]))
""", flags=("-X", "dev"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")


@pytest.mark.parametrize("leave", [
    "sys.exit(5)", "raise SystemExit(5)", "stream2 = iter(stream); sys.exit(5)", "import os; del stream; sys.exit(5)",
    "import threading; threading.Thread(target=lambda: list(stream), daemon=True).start(); sys.exit(5)",
])
def test_leaving_with_a_stream_open(python, leave):
    result = python(OPEN + f"stream = llm.generate(input_ids=[[1, 2]] * 8, sampling_params=long, stream=True)\n"
                    f"next(stream)\n{leave}")
    assert (result.returncode, result.stdout, result.stderr) == (5, "", "")


def test_leaving_with_an_asynchronous_stream_open(python):
    result = python(OPEN + """
import asyncio
kept = []
async def main():
    stream = await llm.async_generate(input_ids=[[1, 2]] * 8, sampling_params=long, stream=True)
    kept.append(stream)
    async for _ in stream:
        sys.exit(6)
asyncio.run(main())
""")
    assert (result.returncode, result.stdout, result.stderr) == (6, "", "")


def test_a_script_without_main_guard_or_shutdown(python):
    result = python(OPEN + 'print(len(llm.generate(input_ids=[1], sampling_params={"max_new_tokens": 2, '
                    '"ignore_eos": True})["output_ids"]))')
    assert (result.returncode, result.stdout, result.stderr) == (0, "2\n", "")


@pytest.mark.skipif("TOKENMILL_TEST_SANITIZER" in os.environ, reason="not run: a sanitizer keeps freed memory")
def test_memory_of_20_engines_in_a_row(python):
    path = demo_model_path()
    model = f"model_path={path!r}" if path else f"model_path={TINY!r}, skip_tokenizer_init=True"
    result = python(f"""
import gc, os, tokenmill
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
levels = []
for _ in range(20):
    with tokenmill.Engine({model}, log_level="error") as llm:
        llm.generate(input_ids=[[1, 2, i] for i in range(8)], sampling_params={{"max_new_tokens": 4}})
    del llm
    levels.append(resident())
print(" ".join(f"{{level:.1f}}" for level in levels))
""", timeout=600, flags=())
    assert result.returncode == 0, result.stderr
    levels = [float(level) for level in result.stdout.split()]
    assert len(levels) == 20
    assert levels[-1] <= levels[0] * 1.03, levels


def test_no_leak_report(python):
    result = python(OPEN + """
import asyncio
llm.generate(input_ids=[[1, 2]] * 3, sampling_params={"max_new_tokens": 4})
for _ in llm.generate(input_ids=[1, 2], sampling_params=long, stream=True):
    break
asyncio.run(llm.async_generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 4}))
for error in ({"top_p": 2}, {"x": 1}):
    try:
        llm.generate(input_ids=[1], sampling_params=error)
    except (TypeError, ValueError):
        pass
""")
    assert "nanobind" not in result.stderr and result.stderr == "" and result.returncode == 0


def test_python_objects_do_not_pile_up(tiny):
    params = {"max_new_tokens": 2, "ignore_eos": True}

    async def some():
        await asyncio.gather(*[tiny.async_generate(input_ids=[1, i], sampling_params=params) for i in range(50)])

    def round_():
        tiny.generate(input_ids=[[1, i] for i in range(50)], sampling_params=params)
        list(tiny.generate(input_ids=[1, 2], sampling_params=params, stream=True))
        asyncio.run(some())
        gc.collect()
        return len(gc.get_objects()), len(os.listdir("/proc/self/fd"))

    round_()
    first = round_()
    for _ in range(5):
        last = round_()
    assert last[0] - first[0] < 50 and last[1] == first[1]
