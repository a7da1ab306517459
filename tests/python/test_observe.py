"""What an engine tells of itself, and what it is told to keep: stats, Prometheus text, traces, pins, special tokens."""
import asyncio
import json
import threading
import time

import pytest

from conftest import TINY, make_text_model, make_tiny

IDS = list(range(1, 101))
ONE = {"max_new_tokens": 1}


def test_histograms_in_stats():
    with make_tiny() as engine:
        engine.generate(input_ids=[IDS] * 3, sampling_params={"max_new_tokens": 4, "ignore_eos": True})
        stats = engine.stats()
    for name in ("queue_time_seconds", "time_to_first_token_seconds", "e2e_latency_seconds"):
        assert stats[name + "_count"] == 3
        bounds = [value for key, value in stats.items() if key.startswith(name + "_le_")]
        assert max(bounds) == 3 and 0 < stats[name + "_p50"] <= stats[name + "_p99"]
    assert stats["inter_token_latency_seconds_count"] == 9 and stats["step_forward_seconds_count"] > 0


def test_prometheus_text():
    with make_tiny() as engine:
        engine.generate(input_ids=IDS, sampling_params=ONE)
        text = engine.prometheus_metrics()
    assert text.startswith("# HELP ") and text.endswith("\n")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith("tokenmill") and float(line.rsplit(" ", 1)[1]) >= 0 for line in samples)
    assert any('le="+Inf"' in line for line in samples)


def test_trace(tmp_path):
    path = tmp_path / "trace.json"
    with make_tiny(trace_path=str(path)) as engine:
        engine.generate(input_ids=IDS, sampling_params=ONE)
    text = path.read_text()
    events = json.loads(text)
    events = events["traceEvents"] if isinstance(events, dict) else events
    assert len(events) > 3


def test_pins():
    with make_tiny() as engine:
        with engine.pin(input_ids=IDS) as pin:
            assert pin.tokens == 100 and engine.stats()["blocks_pinned"] > 0
            assert engine.flush_cache() is True  # which spares pins
            again = engine.generate(input_ids=IDS + [7], sampling_params=ONE)
            assert again["meta_info"]["cached_tokens"] == 100
            salted = engine.generate(input_ids=IDS + [7], sampling_params=ONE, cache_salt="other")
            assert salted["meta_info"]["cached_tokens"] == 0
        assert pin.tokens == 0
        pin.release()
        assert engine.flush_cache() is True
        deadline = time.monotonic() + 10  # told with the step after
        while engine.stats()["blocks_pinned"] > 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        kept = engine.pin(input_ids=IDS)
        del kept
        assert engine.flush_cache() is True
        assert engine.generate(input_ids=IDS, sampling_params=ONE)["meta_info"]["cached_tokens"] == 0
        with pytest.raises(TypeError, match="one prompt"):
            engine.pin(input_ids=[IDS, IDS])
        with pytest.raises(ValueError, match="longer than the model's context"):
            engine.pin(input_ids=IDS * 10)
        open_pin = engine.pin(input_ids=IDS)
    open_pin.release()  # its engine has gone
    with make_tiny(disable_radix_cache=True) as engine, pytest.raises(ValueError, match="disable_radix_cache"):
        engine.pin(input_ids=IDS)


def test_pin_of_text(text_engine):
    pin = text_engine.pin("Once upon a time")
    output = text_engine.generate("Once upon a time there was", ONE)
    assert output["meta_info"]["cached_tokens"] == pin.tokens == len("Once upon a time")
    chat = [{"role": "user", "content": "hello"}]
    assert text_engine.pin(messages=chat).tokens > 5


def test_special_tokens(demo, tiny):
    tokenizer = demo.get_tokenizer()
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|im_end|>"
    assert tokenizer.eos_token_id in tokenizer.eos_token_ids == sorted(tokenizer.eos_token_ids)


def test_a_call_that_is_not_taken_raises_at_once(tiny, text_engine):
    slow = tiny.generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 400, "ignore_eos": True}, rid="taken",
                         stream=True)

    async def main():
        with pytest.raises(ValueError, match="Duplicate request ID detected: taken"):
            await tiny.async_generate(input_ids=[1], rid="taken", stream=True)
        with pytest.raises(ValueError, match="Duplicate request ID detected: taken"):
            await tiny.async_generate(input_ids=[1], rid="taken")

    asyncio.run(main())
    slow.close()
    too_long = ["x" * 3000] * 3  # long enough to be tokenised in another thread
    assert sum(map(len, too_long)) > 4096
    with pytest.raises(ValueError, match="Duplicate request ID detected: a"):
        text_engine.generate(too_long, ONE, rid=["a", "b", "a"], stream=True)
    outputs = text_engine.generate(too_long, ONE)
    chunks = list(text_engine.generate(too_long, ONE, stream=True))
    assert len(outputs) == 3 and {chunk["index"] for chunk in chunks} == {0, 1, 2}


def test_many_threads_and_loops_at_once(text_engine):
    texts = ["a" * 200, "b" * 3000, "c"]
    expected = [output["output_ids"] for output in text_engine.generate(texts, {"temperature": 0, "max_new_tokens": 5})]
    wrong = []

    def work(i):
        params = {"temperature": 0, "max_new_tokens": 5}
        for k in range(3):
            if i % 2:
                outputs = asyncio.run(text_engine.async_generate(texts, params))
            else:
                outputs = text_engine.generate(texts, params)
            if [output["output_ids"] for output in outputs] != expected:
                wrong.append((i, k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_saved_prefix(tmp_path, python):
    path = tmp_path / "prefix"
    with make_tiny(page_size=16) as engine:
        computed = engine.generate(input_ids=IDS + [7], sampling_params={"max_new_tokens": 8, "temperature": 0})
        assert engine.save_prefix(path, input_ids=IDS) == 96
        with pytest.raises(TypeError, match="save_prefix takes one prompt"):
            engine.save_prefix(path, input_ids=[IDS, IDS])
        with pytest.raises(ValueError, match="fewer than page_size=16"):
            engine.save_prefix(path, input_ids=[1, 2])
        with pytest.raises(RuntimeError, match="could not be saved"):
            engine.save_prefix(tmp_path / "no" / "folder", input_ids=IDS)
    result = python(f"""
import tokenmill
with tokenmill.Engine(model_path={TINY!r}, skip_tokenizer_init=True, log_level="error", page_size=16) as engine:
    assert engine.load_prefix({str(path)!r}) == 96
    loaded = engine.generate(input_ids={IDS + [7]}, sampling_params={{"max_new_tokens": 8, "temperature": 0}})
    print(loaded["meta_info"]["cached_tokens"], loaded["output_ids"])
""")
    assert (result.returncode, result.stdout) == (0, f"96 {computed['output_ids']}\n"), result.stderr
    with make_tiny(page_size=32) as engine:
        with pytest.raises(ValueError, match="its page_size is 16, this engine's is 32"):
            engine.load_prefix(path)
    path.write_bytes(path.read_bytes()[:-1])
    with make_tiny(page_size=16) as engine:
        with pytest.raises(ValueError, match="cut or damaged"):
            engine.load_prefix(str(path))


def test_encode_gives_the_ids_of_a_prompt(tmp_path):
    """Also where add_bos_token alone asks for a BOS, which the tokenizer's post-processor does not add."""
    make_text_model(TINY, str(tmp_path))
    config = {"bos_token": "word300", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with make_tiny(model_path=str(tmp_path), skip_tokenizer_init=False) as engine:
        encode = engine.get_tokenizer().encode
        prompt = engine.generate("Hi", ONE, return_prompt_token_ids=True)["prompt_token_ids"]
        assert encode("Hi") == prompt == [300, *b"Hi"]
        assert encode("Hi", add_special_tokens=False) == [*b"Hi"]
