"""Every example runs, and says what it should."""
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from conftest import ROOT, demo_model_path

EXAMPLES = os.path.join(ROOT, "examples", "python")


@pytest.fixture
def model():
    path = demo_model_path()
    if path is None:
        pytest.skip("not run: the demo model is not here")
    return path


def run(name, model):
    result = subprocess.run([sys.executable, os.path.join(EXAMPLES, name), model], capture_output=True, text=True,
                            timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_offline_batch(model):
    text = run("offline_batch.py", model)
    assert text.count("Prompt: ") == text.count("Generated text: ") == 4


def test_async_batch(model):
    count, tokens = run("async_batch.py", model).split(" tasks, ")
    assert count == "400" and 400 <= int(tokens.split()[0]) <= 3200


def test_token_ids(model):
    assert run("token_ids.py", model).count(" -> [") == 2


def test_input_ids(model):
    assert "Paris" in run("input_ids.py", model)


def test_chat(model):
    text = run("chat.py", model)
    assert text.count("user: ") == text.count("assistant: ") == 2


def test_custom_logit_processor(model):
    text = run("custom_logit_processor.py", model)
    assert text[:6].isdigit() and "'type': 'stop'" in text


def test_every_example_has_a_test():
    with open(os.path.abspath(__file__), encoding="utf-8") as file:
        here = file.read()
    for name in os.listdir(EXAMPLES):
        assert not name.endswith(".py") or f'"{name}"' in here, name


class Server:
    """An example in a process of its own, on a free port of 127.0.0.1."""

    def __init__(self, name, model):
        httpx = pytest.importorskip("httpx")
        pytest.importorskip("uvicorn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, os.path.join(EXAMPLES, name), model, str(self.port)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.get("/")
                return
            except httpx.ConnectError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()
                time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.client.close()
        self.process.terminate()
        self.process.communicate(timeout=30)


def test_web_app(model):
    with Server("web_app.py", model) as server:
        assert server.client.get("/").json() == {"service": "demo"}
        answer = server.client.get("/summary", params={"text": "Cats sleep a lot."}).json()
        assert answer["tokens"] > 0 and isinstance(answer["summary"], str)


def test_custom_server(model):
    with Server("custom_server.py", model) as server:
        params = {"temperature": 0, "max_new_tokens": 12}
        whole = server.client.post("/generate", json={"text": "The capital of France is", "sampling_params": params})
        assert whole.status_code == 200 and "Paris" in whole.json()["text"]
        joined, events = "", []
        with server.client.stream("POST", "/generate", json={"text": "The capital of France is", "stream": True,
                                                             "sampling_params": params}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    joined += json.loads(line[6:])["text"]
                events.append(line)
        assert joined == whole.json()["text"] and "data: [DONE]" in events
        wrong = server.client.post("/generate", json={"text": "a", "sampling_params": {"top_p": 2}})
        assert (wrong.status_code, wrong.json()) == (400, {"error": "top_p must be in (0, 1], got 2.0."})
        # A client that goes away ends its request.
        endless = {"text": "Once", "sampling_params": {"max_new_tokens": None, "ignore_eos": True}, "stream": True}
        with server.client.stream("POST", "/generate", json=endless) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 20
        while (stats := server.client.get("/stats").json())["aborted"] < 1 or stats["running"]:
            assert time.monotonic() < deadline, stats
            time.sleep(0.05)
