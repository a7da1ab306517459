#!/usr/bin/env python3
"""Runs the C++ examples over a tiny model and compares them with what `tokenmill generate` says.

  test_examples.py FOLDER_OF_PROGRAMS TINY_MODEL_FOLDER
"""
import json
import os
import re
import subprocess
import sys
import tempfile
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


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
