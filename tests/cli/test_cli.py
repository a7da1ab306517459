#!/usr/bin/env python3
"""Runs build/bin/tokenmill as a user does: exit codes, what goes to stdout and to stderr, and the JSON.

  test_cli.py PROGRAM TINY_MODEL_FOLDER

The tiny model has no tokenizer, so prompts are token ids; the tokenizer is a word list made here.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM, MODEL = sys.argv[1], sys.argv[2]
IDS_ONLY = ["--model-path", MODEL, "--skip-tokenizer-init", "--num-threads", "1", "--max-total-tokens", "4096"]


def run(*args, stdin="", timeout=120):
    return subprocess.run([PROGRAM, *args], input=stdin, capture_output=True, text=True, timeout=timeout)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def items(*objects):
    return "".join(json.dumps(item) + "\n" for item in objects)


class Usage(unittest.TestCase):
    def test_help_goes_to_stdout(self):
        for args in ([], ["generate"], ["info"], ["tokenize"], ["bench"], ["verify"], ["version"]):
            result = run(*args, "--help")
            self.assertEqual(result.returncode, 0, args)
            self.assertIn("--help", result.stdout)
            self.assertEqual(result.stderr, "")

    def test_version(self):
        result = run("version")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"^\d+\.\d+\.\d+\n$")
        self.assertEqual(run("--version").stdout, result.stdout)

    def test_wrong_usage_is_2_and_says_so_on_stderr(self):
        for args in ([], ["nonsense"], ["generate"], ["info"], ["generate", "-m", MODEL, "x", "--no-such-flag"],
                     ["generate", "-m", MODEL, "x", "--top-p", "1.5"], ["generate", "-m", MODEL, "x", "--top-p", "a"],
                     ["generate", "-m", MODEL, "x", "--page-size", "3"], ["generate", "-m", MODEL, "x", "--input", "y"],
                     ["verify", "--kind", "none", "--in", "a", "--out", "b"],
                     ["verify", "--kind", "gen", "--in", "a", "--out", "b"],
                     ["bench", "-m", MODEL, "--batch-sizes", "0"],
                     ["bench", "-m", MODEL, "--batch-sizes", "1,999999999999999"],
                     ["bench", "-m", MODEL, "--prefill-length", "1000000000000000"]):
            result = run(*args)
            self.assertEqual(result.returncode, 2, (args, result.stderr))
            self.assertEqual(result.stdout, "", args)
            self.assertNotEqual(result.stderr, "", args)

    def test_the_rule_and_the_value_are_named(self):
        result = run("generate", "-m", MODEL, "x", "--top-p", "1.5")
        self.assertIn("top_p must be in (0, 1], got 1.5.", result.stderr)

    def test_an_unknown_flag_names_the_nearest(self):
        result = run("generate", "-m", MODEL, "x", "--mem-fraction-statc", "0.5")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--mem-fraction-static", result.stderr)

    def test_an_unknown_flag_names_sampling_flags_too(self):
        result = run("generate", "-m", MODEL, "x", "--temprature", "0.5")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--temperature", result.stderr)

    def test_an_option_that_is_not_needed_here_says_so(self):
        result = run("generate", "-m", MODEL, "x", "--attention-backend", "fa3")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--attention-backend", result.stderr)
        self.assertIn("is not needed here and can be removed", result.stderr)

    def test_wrong_words_are_named(self):
        for args, message in (
            (["generat"], "there is no subcommand generat (the nearest is generate)"),
            (["generate"], "--model-path is required"),
            (["generate", "x", "-m", MODEL, "--top-p", "much"], "top_p must be float, got 'much'."),
            (["generate", "x", "-m", MODEL, "--allowed-token-ids", "1,x"], "allowed_token_ids must be int,int,..., got '1,x'."),
            (["generate", "x", "-m", MODEL, "--page-size", "x"], "page_size must be an integer, got 'x'."),
        ):
            result = run(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertTrue(result.stderr.startswith("tokenmill: error: " + message), result.stderr)
            self.assertEqual(result.stdout, "")

    def test_logprobs_in_text_are_wrong_usage(self):
        result = run("generate", "-m", MODEL, "x", "--return-logprob")
        self.assertEqual(result.returncode, 2)
        self.assertIn("jsonl", result.stderr)

    def test_missing_model_is_1(self):
        for args in (["info", "no/such/model"], ["generate", "-m", "./no-such.gguf", "x"],
                     ["tokenize", "-m", "./no-such.gguf", "x"]):
            result = run(*args)
            self.assertEqual(result.returncode, 1, (args, result.stderr))
            self.assertEqual(result.stdout, "")
            self.assertIn("no", result.stderr)

    def test_every_engine_option_is_a_flag(self):
        text = run("generate", "--help").stdout
        for flag in ("--model-path", "--mem-fraction-static", "--schedule-policy", "--disable-radix-cache", "--page-size",
                     "--served-model-name", "--tp-size", "--allow-auto-truncate"):
            self.assertIn(flag, text)


class Info(unittest.TestCase):
    def test_json_states_the_models_facts(self):
        info = json.loads(run("info", MODEL, "--json").stdout)
        with open(os.path.join(MODEL, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.assertEqual(info["architecture"], config["architectures"][0])
        self.assertEqual(info["num_layers"], config["num_hidden_layers"])
        self.assertEqual(info["context_length"], config["max_position_embeddings"])
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        kv_values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
        self.assertEqual(info["kv_bytes_per_token"], 2 * kv_values)
        self.assertEqual(info["parameters"], sum(row["parameters"] for row in info["formats"]))
        self.assertEqual(info["weight_bytes"], sum(row["bytes"] for row in info["formats"]))
        self.assertGreater(info["parameters"], 200_000)
        self.assertLess(info["parameters"], 400_000)

    def test_text(self):
        result = run("info", MODEL)
        self.assertEqual(result.returncode, 0, result.stderr)
        for word in ("LlamaForCausalLM", "parameters", "context", "KV cache", "safetensors"):
            self.assertIn(word, result.stdout)
        self.assertNotIn("\033", result.stdout)


class Generate(unittest.TestCase):
    def golden(self):
        with open(os.path.join(MODEL, "golden.json"), encoding="utf-8") as file:
            return json.load(file)["prompts"]

    def test_greedy_ids_are_the_reference_ones(self):
        prompts = self.golden()
        given = items(*({"input_ids": prompt["prompt_ids"], "custom_id": f"p{i}",
                         "sampling_params": {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}}
                        for i, prompt in enumerate(prompts)))
        result = run("generate", *IDS_ONLY, "--dtype", "float32", "--input", "-", stdin=given)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")  # no bar, no colour and no log where stderr is no terminal
        found = {line["custom_id"]: line for line in lines(result.stdout)}
        self.assertEqual(len(found), len(prompts))
        for i, prompt in enumerate(prompts):
            line = found[f"p{i}"]
            self.assertEqual(line["output_ids"], prompt["greedy16"])
            self.assertEqual(line["index"], i)
            self.assertEqual(line["meta_info"]["completion_tokens"], 16)
            self.assertEqual(line["meta_info"]["prompt_tokens"], len(prompt["prompt_ids"]))
            self.assertEqual(line["meta_info"]["finish_reason"], {"type": "length", "length": 16})

    def test_output_file_flags_and_samples(self):
        with tempfile.TemporaryDirectory() as folder:
            source, target = os.path.join(folder, "in.jsonl"), os.path.join(folder, "out.jsonl")
            with open(source, "w", encoding="utf-8") as file:
                file.write("\n" + items({"input_ids": [1, 5, 9]}, {"input_ids": [1, 7]}))
            result = run("generate", *IDS_ONLY, "-i", source, "-o", target, "--n", "2", "--max-new-tokens", "3",
                         "--seed", "7", "--ignore-eos", "--return-logprob")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(result.stdout, "")
            with open(target, encoding="utf-8") as file:
                found = lines(file.read())
            self.assertEqual(sorted((line["index"], line["sample"]) for line in found),
                             [(0, 0), (0, 1), (1, 0), (1, 1)])
            for line in found:
                self.assertEqual(len(line["output_ids"]), 3)
                self.assertEqual([row[1] for row in line["meta_info"]["output_token_logprobs"]], line["output_ids"])

    def test_bad_lines_name_file_and_line(self):
        cases = (('{"input_ids": [1]}\n{"input_ids": [1], "promt": "x"}\n', "line 2: unknown key 'promt'"),
                 ("nonsense\n", "line 1: not valid JSON"),
                 ('{"input_ids": [1], "prompt": "x"}\n', "line 1: give exactly one of"),
                 ('{"input_ids": [1], "sampling_params": {"tempreature": 1}}\n', "did you mean 'temperature'"),
                 ('{"input_ids": [1], "sampling_params": {"top_p": 2}}\n', "top_p must be in (0, 1], got 2"),
                 ('{"input_ids": [1], "sampling_params": {"top_k": "x"}}\n', "top_k must be int, got 'x'"))
        for text, message in cases:
            result = run("generate", *IDS_ONLY, "--input", "-", stdin=text)
            self.assertEqual(result.returncode, 1, (text, result.stderr))
            self.assertIn("standard input: line", result.stderr)
            self.assertIn(message, result.stderr)
            self.assertEqual(len(lines(result.stdout)), text.count("\n") - 1)  # the rest runs

    def test_one_bad_request_fails_alone(self):
        given = items({"input_ids": [1] * 100_000}, {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 2}})
        result = run("generate", *IDS_ONLY, "--input", "-", stdin=given)
        self.assertEqual(result.returncode, 1)
        found = {line["index"]: line["meta_info"]["finish_reason"]["type"] for line in lines(result.stdout)}
        self.assertEqual(list(found), [1])
        self.assertIn(found[1], ("length", "stop"))
        self.assertIn("standard input: line 1: The input (100000 tokens) is longer than", result.stderr)
        self.assertIn("1 of 2 failed", result.stderr)

    def test_ctrl_c_keeps_what_is_done(self):
        short = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1}}
        long = {"input_ids": [1, 2, 4], "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
        process = subprocess.Popen([PROGRAM, "generate", *IDS_ONLY, "--input", "-"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdin.write(items(short, *([long] * 3000)))
        process.stdin.close()
        first = process.stdout.readline()  # the short one is done, the others are not
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        rest = process.stdout.read()
        process.wait(timeout=60)
        self.assertLess(time.monotonic() - began, 30)
        self.assertEqual(process.returncode, 130, process.stderr.read())
        process.stderr.close()
        process.stdout.close()
        done = [json.loads(first)] + lines(rest)
        self.assertLess(len(done), 3001)
        for line in done:
            self.assertNotEqual(line["meta_info"]["finish_reason"]["type"], "abort")

    def test_a_huge_logit_bias_forces_its_token(self):
        params = {"max_new_tokens": 2, "temperature": 0.5, "logit_bias": {"7": 1e300, "9": -1e300}}
        result = run("generate", *IDS_ONLY, "--input", "-", stdin=items({"input_ids": [1], "sampling_params": params}))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(lines(result.stdout)[0]["output_ids"], [7, 7])

    def test_deep_nesting_is_an_error(self):
        for line in ('{"prompt":' + "[" * 200000 + "]" * 200000 + "}",
                     '{"input_ids":[1],"custom_id":' + '{"a":' * 200000 + "1" + "}" * 200001):
            result = run("generate", *IDS_ONLY, "--input", "-", stdin=line + "\n")
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("line 1", result.stderr)
            self.assertIn("nest at most", result.stderr)

    def test_ids_past_64_bits_are_not_wrapped(self):
        result = run("generate", *IDS_ONLY, "--input", "-", stdin='{"input_ids":[18446744073709551615]}\n')
        self.assertEqual(result.returncode, 1)
        self.assertIn("input_ids must be a list of 32-bit int", result.stderr)

    def test_a_closed_pipe_is_1(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        item = items({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}})
        result = subprocess.run([PROGRAM, "generate", *IDS_ONLY, "--input", "-"], input=item, stdout=write_end,
                                stderr=subprocess.PIPE, text=True, timeout=120)
        os.close(write_end)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("standard output: cannot be written", result.stderr)

    def test_damaged_weights_name_the_model(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir(MODEL):
                with open(os.path.join(MODEL, name), "rb") as file:
                    data = bytearray(file.read())
                if name == "model.safetensors":  # every value past the header is a NaN
                    begin = 8 + int.from_bytes(data[:8], "little")
                    data[begin:] = b"\xff" * (len(data) - begin)
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(data)
            result = run("generate", "-m", folder, "--skip-tokenizer-init", "--input", "-",
                         stdin=items({"input_ids": [1]}))
            self.assertEqual(result.returncode, 1)
            self.assertIn("NaN", result.stderr)
            self.assertIn(folder, result.stderr)

    def test_unwritable_output_is_1(self):
        result = run("generate", *IDS_ONLY, "--input", "-", "--output", "/dev/full", "--max-new-tokens", "1",
                     stdin=items({"input_ids": [1, 2]}))
        self.assertEqual(result.returncode, 1)
        self.assertIn("/dev/full", result.stderr)


class Bench(unittest.TestCase):
    def test_json(self):
        result = run("bench", *IDS_ONLY, "--prefill-length", "64", "--input-length", "8", "--output-length", "8",
                     "--batch-sizes", "1,3", "--repeat", "1", "--no-roofs", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual([row["batch_size"] for row in report["decode"]], [1, 3])
        self.assertGreater(report["prefill"]["tokens_per_s"], 0)
        for row in report["decode"]:
            self.assertGreater(row["tokens_per_s"], 0)
            self.assertGreaterEqual(row["first_token_p99_s"], row["first_token_p50_s"])
        self.assertGreater(report["packed_weight_bytes"], 0)
        self.assertIsNone(report["roofs"])


class Tokenize(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        vocabulary = {"[UNK]": 0, "hello": 1, "world": 2, "!": 3}
        with open(os.path.join(self.folder.name, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                       "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                       "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}, file)

    def test_both_ways(self):
        result = run("tokenize", "-m", self.folder.name, "hello world!")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout), [1, 2, 3])
        self.assertEqual(run("tokenize", "-m", self.folder.name, stdin="world").stdout, "[2]\n")
        self.assertEqual(run("tokenize", "-m", self.folder.name, "--count", "hello hello").stdout, "2\n")
        self.assertEqual(run("tokenize", "-m", self.folder.name, "--decode", "1,2").stdout, "hello world\n")
        self.assertEqual(run("tokenize", "-m", self.folder.name, "--decode", "[2, 1]").stdout, "world hello\n")
        pieces = run("tokenize", "-m", self.folder.name, "--pieces", "world !").stdout.splitlines()
        self.assertEqual([line.split("\t")[0] for line in pieces], ["2", "3"])

    def test_bad_ids(self):
        result = run("tokenize", "-m", self.folder.name, "--decode", "1,99")
        self.assertEqual(result.returncode, 1)
        self.assertIn("must be in [0, 4), got 99", result.stderr)
        self.assertEqual(run("tokenize", "-m", self.folder.name, "--decode", "a,b").returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
