#!/usr/bin/env python3
"""Batches as a user runs them: both forms of input, results as they finish, resumption after kill -9, and bad files.

  test_batch.py PROGRAM TINY_MODEL_FOLDER

TOKENMILL_BATCH_KILLS sets how many batches are killed until they are through (default 8: about 25 kills).
"""
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM, MODEL = sys.argv[1], sys.argv[2]
KILLS = int(os.environ.get("TOKENMILL_BATCH_KILLS", "8"))
ENGINE = ["--num-threads", "1", "--max-total-tokens", "4096", "--random-seed", "1"]
IDS_ONLY = ["-m", MODEL, "--skip-tokenizer-init", *ENGINE]


def make_chat_model(folder):
    """The tiny model with a word-list tokenizer and a chat template."""
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(os.path.join(MODEL, name), os.path.join(folder, name))
    vocabulary = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 512)}}
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                   "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                   "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"chat_template": "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2 {{ more }}"}, file)


def request(number, tokens=4, **more):
    return {"custom_id": f"r{number}", "input_ids": [1 + number % 500, 7, 9],
            "sampling_params": {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}, **more}


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.input, self.output = self.path("in.jsonl"), self.path("out.jsonl")
        self.errors = self.path("out.errors.jsonl")

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, *objects, path=None):
        with open(path or self.input, "w", encoding="utf-8") as file:
            file.writelines((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in objects)

    def read(self, path=None):
        with open(path or self.output, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def command(self, *args, model=None):
        return [PROGRAM, "generate", *(model or IDS_ONLY), "-i", self.input, "-o", self.output, *args]

    def run_batch(self, *args, code=0, **how):
        model = how.pop("model", None)
        result = subprocess.run(self.command(*args, model=model), capture_output=True, text=True, timeout=300, **how)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        return result.stderr

    def tokens_by_id(self, path=None):
        found = {}
        for line in self.read(path):
            self.assertNotIn(line["custom_id"], found)
            found[line["custom_id"]] = line["output_ids"]
        return found


class Forms(Files):
    def setUp(self):
        super().setUp()
        model = self.path("model")
        os.mkdir(model)
        make_chat_model(model)
        self.model = ["-m", model, "--served-model-name", "tiny", *ENGINE]

    def test_openai_lines(self):
        def line(number, url, **body):
            return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/" + url, "body": body}
        messages = [{"role": "user", "content": "w5 w6"}]
        self.write(
            line(0, "chat/completions", model="gpt", messages=messages, max_tokens=3, temperature=0, seed=4,
                 logprobs=True, top_logprobs=2, user="u", ignore_eos=True, top_k=None,
                 chat_template_kwargs={"more": "w8"}),
            line(1, "completions", prompt="w5 w6 w7", max_tokens=4, n=2, ignore_eos=True, logprobs=1, stream=False),
            line(2, "completions", prompt=[5, 6, 7], max_completion_tokens=2, ignore_eos=True))
        self.run_batch(model=self.model)
        found = {item["custom_id"]: item for item in self.read()}
        for item in found.values():
            self.assertEqual(list(item), ["id", "custom_id", "response", "error"])
            self.assertTrue(item["id"].startswith("batch_req_"))
            self.assertIsNone(item["error"])
            self.assertEqual(item["response"]["status_code"], 200)
        chat, text, ids = (found[f"c{i}"]["response"]["body"] for i in range(3))
        self.assertEqual((chat["object"], chat["model"]), ("chat.completion", "gpt"))
        choice = chat["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(len(choice["logprobs"]["content"]), 3)
        for token in choice["logprobs"]["content"]:
            self.assertEqual(bytes(token["bytes"]).decode(), token["token"])
            self.assertEqual(len(token["top_logprobs"]), 2)
            self.assertLessEqual(token["logprob"], 0)
        self.assertEqual(chat["usage"], {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
                                         "prompt_tokens_details": {"cached_tokens": 0}})
        self.assertEqual((text["object"], text["model"]), ("text_completion", "tiny"))
        self.assertEqual([choice["index"] for choice in text["choices"]], [0, 1])
        self.assertEqual(text["usage"]["completion_tokens"], 8)
        self.assertEqual(len(text["choices"][0]["logprobs"]["tokens"]), 4)
        self.assertEqual(ids["usage"]["completion_tokens"], 2)
        self.assertIsNone(ids["choices"][0]["logprobs"])

    def test_what_an_openai_line_may_not_say(self):
        good = {"model": "m", "messages": [{"role": "user", "content": "w5"}], "max_tokens": 1}
        def line(number, body, **over):
            return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions",
                    "body": {**good, **body}, **over}
        no_messages = line(8, {})
        del no_messages["body"]["messages"]
        cases = ((line(0, {"stream": True}), "body.stream = true is not built"),
                 (line(1, {"tools": [{"type": "function"}]}), "body.tools"),
                 (line(2, {"temprature": 1}), "'temperature'"),
                 (line(3, {"temperature": 9e9, "top_p": 7}), "top_p must be in (0, 1], got 7"),
                 (line(4, {}, method="GET"), 'method must be "POST", got "GET"'),
                 (line(5, {}, url="/v1/embeddings"), "url must be /v1/chat/completions or"),
                 (line(6, {"top_logprobs": 3}), "needs body.logprobs"),
                 (line(7, {"logit_bias": {"x": 1}}), "logit_bias must be dict"),
                 (no_messages, "body.messages is missing"),
                 ({"method": "POST", "url": "/v1/completions", "body": {"prompt": "w1"}}, "custom_id is missing"),
                 ({**line(10, {}), "url": "/v1/completions", "body": {"prompt": ["a", "b"]}}, "several prompts"))
        self.write(line(99, {}), *(case for case, _ in cases))
        errors = self.run_batch(model=self.model, code=1)
        self.assertIn(f"{len(cases)} of {len(cases) + 1} failed; see {self.errors}", errors)
        self.assertEqual([item["custom_id"] for item in self.read()], ["c99"])
        for (given, message), found in zip(cases, self.read(self.errors)):
            self.assertIn(message, found["error"]["message"])
            self.assertEqual(found["error"]["code"], "invalid_request")
            self.assertEqual(found["custom_id"], given.get("custom_id"))
            self.assertIsNone(found["response"])

    def test_text_keeps_the_order(self):
        self.write(*({"prompt": f"w{i + 3}", "sampling_params": {"max_new_tokens": 1 + 5 * (i % 3), "ignore_eos": True}}
                     for i in range(20)))
        self.run_batch("--format", "text", "--temperature", "0", model=self.model)
        with open(self.output, encoding="utf-8") as file:
            texts = file.read().splitlines()
        self.output = self.path("again.jsonl")
        self.run_batch("--temperature", "0", "--ordered", model=self.model)
        self.assertEqual(texts, [item["text"] for item in self.read()])


class Order(Files):
    def test_ordered(self):
        self.write(*(request(i, tokens=1 + (7 * i) % 20) for i in range(40)), "bad", request(40))
        self.run_batch("--ordered", code=1)
        self.assertEqual([line["custom_id"] for line in self.read()], [f"r{i}" for i in range(41)])
        with open(self.output, "rb+") as file:  # as if it had been cut off after 10
            data = file.read()
            file.truncate(len(b"".join(data.splitlines(True)[:10])))
        self.run_batch("--ordered", code=1)
        self.assertEqual([line["custom_id"] for line in self.read()], [f"r{i}" for i in range(41)])


class Failures(Files):
    def test_bad_lines_go_to_the_error_file_and_the_rest_runs(self):
        self.write(request(0), "nonsense", "", {"input_ids": [1], "custom_id": 7, "promt": "x"},
                   {"input_ids": [1] * 5000, "custom_id": "long"}, request(1), {"input_ids": [99999]}, "{\"a\":" * 5000)
        self.assertIn("5 of 7 failed", self.run_batch(code=1))
        self.assertEqual(set(self.tokens_by_id()), {"r0", "r1"})
        errors = {item["line"]: item for item in self.read(self.errors)}
        self.assertEqual(sorted(errors), [2, 4, 5, 7, 8])
        self.assertEqual(errors[4]["custom_id"], 7)
        self.assertIn("unknown key 'promt'", errors[4]["error"]["message"])
        self.assertIn("longer than the model's context length", errors[5]["error"]["message"])
        self.assertEqual(errors[5]["error"]["code"], "request_failed")
        self.assertIn("got 99999", errors[7]["error"]["message"])
        # The next run tries them again, and runs nothing else; appended lines are welcome.
        with open(self.input, "a", encoding="utf-8") as file:
            file.write(json.dumps(request(2)) + "\n")
        self.assertIn("2 of 8 had their result already", self.run_batch(code=1))
        self.assertEqual(set(self.tokens_by_id()), {"r0", "r1", "r2"})
        self.assertEqual(len(self.read(self.errors)), 5)

    def test_a_custom_id_that_comes_twice(self):
        self.write(request(0), request(1), request(0), request(0))
        for _ in range(2):  # the second run sees the first line done already
            self.run_batch(code=1)
            self.assertEqual(set(self.tokens_by_id()), {"r0", "r1"})
            errors = self.read(self.errors)
            self.assertEqual([item["line"] for item in errors], [3, 4])
            self.assertIn('custom_id "r0" is that of line 1 too', errors[0]["error"]["message"])

    def test_error_file_of_ones_own(self):
        self.write("bad", request(0))
        path = self.path("mine")
        self.run_batch("--error-file", path, code=1)
        self.assertEqual(len(self.read(path)), 1)
        self.assertFalse(os.path.exists(self.errors))
        self.write("important notes", path=path)
        self.assertIn("is no error file of a batch", self.run_batch("--error-file", path, code=1))
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "important notes\n")

    def test_the_error_file_goes_when_nothing_fails_any_more(self):
        self.write(request(0), request(1, tokens=5000))
        self.run_batch("--allow-auto-truncate")
        self.write("bad", path=self.input)
        self.output = self.path("other.jsonl")
        self.run_batch(code=1)
        self.assertTrue(os.path.exists(self.path("other.errors.jsonl")))
        self.write(request(0), path=self.input)
        self.run_batch()
        self.assertFalse(os.path.exists(self.path("other.errors.jsonl")))

    def test_another_input_or_other_settings_are_refused(self):
        self.write(request(0), request(1))
        self.run_batch()
        with open(self.output, "rb") as file:
            before = file.read()
        self.assertIn("the sampling parameters", self.run_batch("--top-p", "0.5", code=1))
        self.write(request(0), request(1, tokens=5))
        self.assertIn("line 2 is not the one whose result", self.run_batch(code=1))
        self.write(request(0))
        self.assertIn("is the result of request 1 (from 0), but the input has only 1", self.run_batch(code=1))
        with open(self.output, "rb") as file:
            self.assertEqual(file.read(), before)
        self.run_batch("--overwrite", "--top-p", "0.5")
        self.assertEqual(len(self.read()), 1)

    def test_a_file_that_is_no_result_is_left_alone(self):
        self.write(request(0))
        huge = '{"index": 0, "meta_info": {"id": "batch_req_9223372036854775807_0123456789abcdef"}}\n'
        for text in ("my thesis\n", "my thesis", '{"custom_id": 1}\n', huge):
            with open(self.output, "w", encoding="utf-8") as file:
                file.write(text)
            self.assertIn("give another output", self.run_batch(code=1))
            with open(self.output, encoding="utf-8") as file:
                self.assertEqual(file.read(), text)

    def test_paths_that_cannot_be(self):
        self.write(request(0))
        self.output = self.path("no/such/folder.jsonl")
        self.assertIn("cannot be opened for writing (No such file or directory)", self.run_batch(code=1))
        self.output = self.folder
        self.assertIn("Is a directory", self.run_batch(code=1))
        self.output = self.input
        self.assertIn("is the input too", self.run_batch("--overwrite", code=1))
        self.assertEqual(len(self.read(self.input)), 1)
        self.input = self.folder
        self.output = self.path("x")
        self.assertIn("is a folder", self.run_batch(code=1))

    def test_two_processes(self):
        self.write(request(0))
        with open(self.output, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.assertIn("another run is writing its results to this file", self.run_batch(code=1))
        self.run_batch()
        self.assertEqual(len(self.read()), 1)

    def test_a_full_disk(self):
        self.write(*(request(i, tokens=8) for i in range(60)))
        limit = 6000

        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails with EFBIG instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        errors = self.run_batch(code=1, preexec_fn=small_files)
        self.assertIn("out.jsonl: cannot be written", errors)
        self.assertIn("make room and run the same again", errors)
        done = self.tokens_by_id()  # whole lines only
        self.assertGreater(len(done), 3)
        self.assertLess(len(done), 60)
        self.run_batch()
        after = self.tokens_by_id()
        self.assertEqual(len(after), 60)
        for custom_id, tokens in done.items():
            self.assertEqual(after[custom_id], tokens)


class Resume(Files):
    def test_torn_lines_are_mended(self):
        samples = 3
        self.write(*(request(i) for i in range(10)), {"input_ids": [5], "custom_id": "many"})
        args = ("--n", str(samples))
        self.run_batch(*args, "--ordered")
        with open(self.output, "rb") as file:
            whole = file.read()
        rows = whole.splitlines(True)
        def keys(path):
            return sorted((line["custom_id"], line["sample"], tuple(line["output_ids"])) for line in self.read(path))
        expected = keys(self.output)
        self.assertEqual(len(expected), 11 * samples)
        # In mid-line, at a line's end, after some of a request's samples, in the first line, and after zeros.
        tails = (len(whole) - 5, len(b"".join(rows[:6])), len(b"".join(rows[:7])), len(b"".join(rows[:8])) + 40, 30, 1, 0)
        for tail in tails:
            with open(self.output, "wb") as file:
                file.write(whole[:tail] + (b"\0" * 100 if tail == len(whole) - 5 else b""))
            self.run_batch(*args)
            self.assertEqual(keys(self.output), expected, tail)

    def test_kill_9(self):
        count = 400
        self.write(*(request(i, tokens=1 + i % 40) for i in range(count)), "bad line")
        self.run_batch(code=1)
        expected = self.tokens_by_id()
        self.assertEqual(len(expected), count)
        random.seed(5)
        cut_off = 0
        for attempt in range(KILLS):
            self.output = self.path(f"killed{attempt}.jsonl")
            for _ in range(100):
                process = subprocess.Popen(self.command(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
                wanted = self.size() + random.randrange(1, 60_000)
                while process.poll() is None and self.size() < wanted:
                    time.sleep(0.001)
                process.kill()
                process.communicate()
                if process.returncode != -signal.SIGKILL:
                    break
                cut_off += 1
            self.assertEqual(process.returncode, 1)
            self.assertEqual(self.tokens_by_id(), expected, attempt)
            self.assertEqual(len(self.read(self.path(f"killed{attempt}.errors.jsonl"))), 1)
        print(f"killed {cut_off} times", file=sys.stderr)
        self.assertGreaterEqual(cut_off, KILLS)

    def size(self):
        try:
            return os.stat(self.output).st_size
        except FileNotFoundError:
            return 0

    def test_ctrl_c_and_again(self):
        self.write(*(request(i, tokens=100) for i in range(300)))
        process = subprocess.Popen(self.command(), stderr=subprocess.PIPE, text=True)
        while self.size() < 1000:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        done = len(self.read())
        self.assertLess(done, 300)
        self.assertFalse(os.path.exists(self.errors))  # what was cut off is no failure
        self.assertIn(f"{done} of 300 had their result already", self.run_batch())
        self.assertEqual(len(self.tokens_by_id()), 300)

    def test_standard_input_resumes_too(self):
        text = "".join(json.dumps(request(i)) + "\n" for i in range(5))
        self.input = "-"
        self.run_batch(input=text)
        with open(self.output, "rb+") as file:
            file.truncate(50)
        self.run_batch(input=text)
        self.assertEqual(len(self.tokens_by_id()), 5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
