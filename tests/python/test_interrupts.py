"""Ctrl-C while the engine is at work in C++: KeyboardInterrupt comes soon, and what was begun ends."""
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time

import pytest

import tokenmill
from conftest import ROOT, TINY, make_tiny, wait_until_idle

sys.path.insert(0, os.path.join(ROOT, "tests", "cli"))
from hub_server import HubServer  # noqa: E402

IDS = [1, 5, 9, 13]
LONG = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
# What these tests cut off would take minutes; a busy machine may still be slow to see the signal.
SOON = 20


@contextlib.contextmanager
def ctrl_c_after(seconds):
    """Sends SIGINT, and has KeyboardInterrupt come out of the block in time."""
    sent = []

    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        delay = time.monotonic() - sent[0]
        print(f"[ Ctrl-C ] after {delay * 1000:.0f} ms")  # shown by pytest -rP
        assert delay < SOON
    finally:
        timer.cancel()


def still_works(engine, seconds=10):
    """At once; and what was begun ends, which one huge prompt in the tokenizer does at its end."""
    params = {"max_new_tokens": 2, "ignore_eos": True}
    assert len(engine.generate(input_ids=IDS, sampling_params=params)["output_ids"]) == 2
    wait_until_idle(engine, seconds)


@pytest.fixture
def engine():
    with make_tiny(disable_radix_cache=True) as engine:
        yield engine


@pytest.fixture
def long_texts():
    """A list that takes minutes to tokenise: a byte a token."""
    return ["ab " * 20_000] * 4000


def test_during_a_batch(engine):
    with ctrl_c_after(0.3):
        while True:  # a batch may be done before the signal comes
            engine.generate(input_ids=[IDS] * 512, sampling_params=LONG)
    still_works(engine)


def test_in_a_stream(engine):
    with ctrl_c_after(0.2):
        while True:
            for _ in engine.generate(input_ids=[IDS] * 64, sampling_params=LONG, stream=True):
                pass
    still_works(engine)


@pytest.mark.parametrize("stream", [False, True])
def test_while_a_list_is_tokenised(text_engine, long_texts, stream):
    with ctrl_c_after(0.5):
        text_engine.generate(long_texts, {"max_new_tokens": 1}, stream=stream)
    still_works(text_engine)


def test_while_generate_iter_tokenises(text_engine, long_texts):
    with ctrl_c_after(0.5):
        list(text_engine.generate_iter(iter(long_texts), {"max_new_tokens": 1}))
    still_works(text_engine)


def test_in_asyncio_while_a_list_is_tokenised(text_engine, long_texts):
    with ctrl_c_after(0.5):
        asyncio.run(text_engine.async_generate(long_texts, {"max_new_tokens": 1}))
    still_works(text_engine)


@pytest.fixture
def huge_text():
    """One prompt that takes the tokenizer many seconds: nothing ends that half way."""
    return "ab " * 5_000_000


@pytest.mark.parametrize("stream", [False, True])
def test_while_one_huge_prompt_is_tokenised(text_engine, huge_text, stream):
    with ctrl_c_after(0.5):
        text_engine.generate(huge_text, {"max_new_tokens": 1}, stream=stream)
    still_works(text_engine, 120)


def test_in_asyncio_while_one_huge_prompt_is_tokenised(text_engine, huge_text):
    with ctrl_c_after(0.5):
        asyncio.run(text_engine.async_generate(huge_text, {"max_new_tokens": 1}))
    still_works(text_engine, 120)


def test_while_generate_iter_tokenises_a_huge_prompt(text_engine, huge_text):
    with ctrl_c_after(0.5):
        list(text_engine.generate_iter([huge_text], {"max_new_tokens": 1}))
    still_works(text_engine, 120)


@pytest.mark.parametrize("call", ["encode", "pin"])
def test_while_a_huge_text_is_encoded_or_pinned(text_engine, huge_text, call):
    encode = {"encode": text_engine.get_tokenizer().encode, "pin": text_engine.pin}[call]
    with ctrl_c_after(0.5):
        encode(huge_text)
    still_works(text_engine, 120)


def test_while_a_file_is_run(engine, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"input_ids": [1, 2, 3]}\n' * 50_000)
    with ctrl_c_after(0.5):
        engine.run_batch(source, tmp_path / "out.jsonl", LONG)
    still_works(engine)


def test_while_a_file_of_long_prompts_is_run(text_engine, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(('{"prompt": "' + "ab " * 100_000 + '"}\n') * 300)
    with ctrl_c_after(0.5):
        text_engine.run_batch(source, tmp_path / "out.jsonl", LONG)
    still_works(text_engine)


def test_while_a_prompt_is_pinned():
    with make_tiny() as engine:
        slow = engine.generate(input_ids=[IDS] * 256, sampling_params=LONG, stream=True)
        with ctrl_c_after(0.2):
            while True:
                engine.pin(input_ids=list(range(1, 400)))
        slow.close()
        still_works(engine)


def test_while_a_model_loads():
    # 1.6 billion random weights that are made one tensor at a time.
    large = ('{"num_hidden_layers": 400, "hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 16, '
             '"num_key_value_heads": 16, "head_dim": 64}')
    with ctrl_c_after(0.5):
        make_tiny(load_format="dummy", json_model_override_args=large)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = HubServer()
    files = {}
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        with open(os.path.join(TINY, name), "rb") as file:
            files[name] = file.read()
    hub.add("org/tiny", files, lfs={"model.safetensors"})
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    yield hub
    hub.close()


@pytest.mark.parametrize("what, fault", [("model.safetensors", {"slow": 0.1}), ("model.safetensors", {"stall": 60}),
                                         ("api", {"stall": 60}), ("api", {"status": 429, "headers": {"Retry-After": "50"}})])
def test_during_a_download(hub, what, fault):
    hub.fault(what, **fault)
    with ctrl_c_after(0.5):
        make_tiny(model_path="org/tiny")
    hub.faults.clear()
    with make_tiny(model_path="org/tiny") as engine:
        still_works(engine)
