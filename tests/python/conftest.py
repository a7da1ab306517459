"""Engines over the tiny checkpoints of tests/data (ids only) and, where it is there, over the demo model."""
import os
import signal
import sys
import time

import pytest

import tokenmill

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY = os.path.join(ROOT, "tests", "data", "tiny", "stories260k")
sys.path.insert(0, os.path.join(ROOT, "tests", "util"))
from tiny_text_model import make as make_text_model  # noqa: E402

# A shell has its background jobs ignore Ctrl-C, and the tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def demo_model_path():
    """The demo model, where tests may use it; else None. Nothing is downloaded here."""
    models = os.environ.get("TOKENMILL_TEST_MODELS")
    if models:
        path = os.path.join(models, "gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
        if os.path.exists(path):
            return path
    cache = os.environ.get("TOKENMILL_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tokenmill")
    path = os.path.join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
    return path if os.path.exists(path) else None


def make_tiny(**kwargs):
    options = dict(model_path=TINY, skip_tokenizer_init=True, log_level="error", num_threads=1)
    return tokenmill.Engine(**{**options, **kwargs})


def wait_until_idle(engine, seconds=10):
    """Every request has ended and all blocks are back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = engine.stats()
        ended = stats["finished"] + stats["aborted"] == stats["requests"]
        if ended and stats["running"] == stats["queue"] == 0 and (
                stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]):
            return stats
        time.sleep(0.005)
    pytest.fail(f"still running: {engine.stats()}")


def pytest_sessionfinish(session):
    """Under ASan: what the engines of all tests lost fails the session."""
    if os.environ.get("TOKENMILL_TEST_SANITIZER") != "address":
        return
    import leaks

    text = leaks.report()
    lost = leaks.of_the_package(text)
    print(f"\nLeakSanitizer: {text.count(' leak of ')} leaks of Python and its modules, {len(lost)} of tokenmill")
    if "LeakSanitizer" not in text and text:
        print(text)
    if lost:
        print("\n\n".join(lost))
        session.exitstatus = 1


@pytest.fixture
def text_engine(tmp_path):
    """An engine over the tiny model with a tokenizer of bytes: texts that mean nothing, of any length."""
    folder = tmp_path / "text-model"
    folder.mkdir()
    with make_tiny(model_path=make_text_model(TINY, str(folder)), skip_tokenizer_init=False) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny():
    """An engine without a tokenizer over a model of 260,000 parameters: 512 tokens of context and vocabulary."""
    with make_tiny() as engine:
        yield engine


@pytest.fixture(scope="session")
def demo():
    """An engine over SmolLM2-135M-Instruct."""
    path = demo_model_path()
    if path is None:
        pytest.skip("not run: the demo model is not here (tools/fetch_demo_model.py fetches it)")
    with tokenmill.Engine(model_path=path, log_level="error") as engine:
        yield engine


@pytest.fixture
def python():
    """Runs a piece of Python in a process of its own; the result has returncode, stdout and stderr."""
    import subprocess

    def run(code, *args, timeout=120, flags=("-X", "dev", "-W", "error"), **kwargs):
        return subprocess.run([sys.executable, *flags, "-c", code, *args], capture_output=True, text=True,
                              timeout=timeout, **kwargs)

    return run
