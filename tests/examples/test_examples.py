#!/usr/bin/env python3
"""Runs the C++ examples over a tiny model and compares them with what `tokenmill generate` says.

  test_examples.py FOLDER_OF_PROGRAMS TINY_MODEL_FOLDER
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "util"))
import tiny_text_model  # noqa: E402

BIN, TINY = sys.argv[1], sys.argv[2]
PROMPTS = ["Hello, my name is", "The president of the United States is", "The capital of France is",
           "The future of AI is"]


def run(program, *args, stdin=""):
    result = subprocess.run([os.path.join(BIN, program), *args], input=stdin.encode(), capture_output=True, timeout=120)
    if result.returncode != 0:
        raise AssertionError(f"{program}: {result.returncode}\n{result.stderr.decode()}")
    return result.stdout.decode(errors="replace")


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = tiny_text_model.make(TINY, cls.folder.name)

    def greedy(self, item, tokens=128):
        """One answer of the command line."""
        line = json.dumps({**item, "sampling_params": {"temperature": 0, "max_new_tokens": tokens}})
        return json.loads(run("tokenmill", "generate", "-m", self.model, "--num-threads", "1", "--max-total-tokens",
                              "4096", "--input", "-", stdin=line).splitlines()[0])


class Programs(Base):
    def test_offline_batch(self):
        text = run("offline_batch", self.model)
        for prompt in PROMPTS:
            self.assertEqual(text.count(f"Prompt: {prompt}\n"), 4, text)
        self.assertEqual(len(re.findall(r"\[\d+ tokens in", text)), 4)

    def test_input_ids(self):
        text = run("input_ids", self.model, "Once upon")
        self.assertIn("Prompt: " + " ".join(str(byte) for byte in b"Once upon"), text)
        self.assertEqual(text.split("\nText:")[1], self.greedy({"prompt": "Once upon"})["text"] + "\n")

    def test_token_in_token_out(self):
        rows = [line.split() for line in run("token_in_token_out", TINY, "1", "9", "20").splitlines()]
        expected = self.greedy({"input_ids": [1, 9, 20]}, 16)["output_ids"]
        self.assertEqual([int(row[0]) for row in rows], expected)
        self.assertTrue(all(float(row[1]) <= 0 for row in rows))

    def test_chat(self):
        text = run("chat", self.model, stdin="Hello.\nAnd again.\n")
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Hello."}]
        first = self.greedy({"messages": messages}, 256)["text"]
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And again."}]
        second = self.greedy({"messages": messages}, 256)["text"]
        self.assertEqual(text, f"> {first}\n> {second}\n> ")

    def test_coroutines(self):
        text = run("coroutines", self.model)
        for prompt in PROMPTS:
            self.assertIn(f"{prompt}|{self.greedy({'prompt': prompt})['text']}\n[", text)
        self.assertEqual(len(re.findall(r"^\[\d+ chunks\]$", text, re.M)), 4)

    def test_usage_and_errors(self):
        for program in ("offline_batch", "input_ids", "token_in_token_out", "chat", "coroutines"):
            wrong = subprocess.run([os.path.join(BIN, program)], capture_output=True, text=True)
            self.assertEqual(wrong.returncode, 2)
            self.assertIn("usage", wrong.stderr)
            missing = subprocess.run([os.path.join(BIN, program), "no/such/model", "1"][:2 if program in (
                "offline_batch", "chat", "coroutines") else 3], capture_output=True, text=True)
            self.assertEqual(missing.returncode, 1)
            self.assertIn("no/such/model", missing.stderr)


@unittest.skipUnless(os.path.exists(os.path.join(BIN, "custom_server")),
                     "not run: custom_server was not built, Boost 1.79 or later is missing (libboost1.81-dev)")
class CustomServer(Base):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.log = open(os.path.join(cls.folder.name, "log"), "w+", encoding="utf-8")
        cls.server = subprocess.Popen([os.path.join(BIN, "custom_server"), cls.model], stdout=subprocess.PIPE,
                                      stderr=cls.log, text=True)
        cls.addClassCleanup(cls.stop)
        cls.port = int(cls.server.stdout.readline().rsplit(":", 1)[1])

    @classmethod
    def stop(cls):
        if cls.server.poll() is None:
            cls.server.send_signal(signal.SIGTERM)
        try:
            code = cls.server.wait(20)
        finally:
            cls.server.kill()
            cls.server.stdout.close()
            cls.log.close()
        assert code == 0, code

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.addCleanup(connection.close)
        connection.request(method, path, body if body is None or isinstance(body, str) else json.dumps(body))
        response = connection.getresponse()
        return response, response.read().decode()

    def generate(self, **body):
        response, text = self.request("POST", "/generate", body)
        self.assertEqual(response.status, 200, text)
        return json.loads(text)

    def events(self, text):
        rows = [line for line in text.split("\n\n") if line]
        self.assertEqual(rows[-1], "data: [DONE]")
        return [json.loads(row.removeprefix("data: ")) for row in rows[:-1]]

    def test_one_answer(self):
        params = {"temperature": 0, "max_new_tokens": 20, "stop": ["~~~~"], "logit_bias": {"3": -5}}
        found = self.generate(text="Once upon", sampling_params={"temperature": 0, "max_new_tokens": 20})
        self.assertEqual(found["text"], self.greedy({"prompt": "Once upon"}, 20)["text"])
        self.assertEqual(found["meta_info"]["completion_tokens"], 20)
        self.assertEqual(found["meta_info"]["finish_reason"], {"type": "length", "length": 20})
        self.assertEqual(len(self.generate(input_ids=[1, 2], sampling_params=params)["output_ids"]), 20)

    def test_a_stream_joins_to_the_answer(self):
        response, text = self.request("POST", "/generate", {
            "text": "Once upon", "stream": True, "sampling_params": {"temperature": 0, "max_new_tokens": 20}})
        self.assertEqual(response.getheader("content-type"), "text/event-stream")
        events = self.events(text)
        self.assertGreater(len(events), 5)
        self.assertEqual("".join(event["text"] for event in events), self.greedy({"prompt": "Once upon"}, 20)["text"])

    def test_many_at_once(self):
        expected = self.greedy({"prompt": "x"}, 30)["text"]
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.generate(
            text="x", sampling_params={"temperature": 0, "max_new_tokens": 30})["text"])) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [expected] * 16)

    def test_errors_are_400_and_say_what_is_wrong(self):
        for body, part in (("{", "parse"), ({"text": "x", "sampling_params": {"top_p": 1.5}}, "top_p must be in (0, 1]"),
                           ({"text": "x", "sampling_params": {"top_q": 1}}, "top_p"), ({}, "should be provided"),
                           ({"text": "x", "sampling_params": {"n": 2}}, "n must be 1")):
            response, text = self.request("POST", "/generate", body)
            self.assertEqual(response.status, 400, text)
            self.assertIn(part, json.loads(text)["error"]["message"])
        self.assertEqual(self.request("GET", "/nowhere")[0].status, 404)
        self.assertEqual(self.request("GET", "/stats")[0].status, 200)

    def test_a_connection_serves_several_requests(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.addCleanup(connection.close)
        for _ in range(3):
            connection.request("POST", "/generate", json.dumps({"text": "x", "sampling_params": {"max_new_tokens": 2}}))
            self.assertEqual(len(json.loads(connection.getresponse().read())["output_ids"]), 2)

    def leave(self, stream):
        """Sends a request of many tokens and goes away."""
        body = json.dumps({"text": "Once", "stream": stream,
                           "sampling_params": {"temperature": 0, "max_new_tokens": 4000, "ignore_eos": True}})
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        if stream:
            client.recv(100)
        else:
            time.sleep(0.01)
        client.close()

    def test_a_client_that_leaves_ends_its_request(self):
        def stats():
            return json.loads(self.request("GET", "/stats")[1])

        for stream in (True, False):
            before = stats()["aborted"]
            # The tiny model is quick: one of these may have ended before the client left.
            for _ in range(100):
                self.leave(stream)
                deadline = time.monotonic() + 20
                while stats()["running"] > 0 and time.monotonic() < deadline:
                    time.sleep(0.005)
                if stats()["aborted"] > before:
                    break
            self.assertGreater(stats()["aborted"], before, f"stream={stream}")
            self.assertEqual(stats()["running"], 0)
        self.assertIsNone(self.server.poll())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
