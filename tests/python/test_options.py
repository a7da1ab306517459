"""ServerArgs and SamplingParams against the engine's tables; types; logging; what importing costs; run_batch."""
import argparse
import asyncio
import dataclasses
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import tokenmill
from conftest import ROOT, TINY, demo_model_path, make_tiny
from tokenmill import _native

HERE = os.path.dirname(os.path.abspath(__file__))


def test_server_args_round_trip():
    args = tokenmill.ServerArgs(model_path="m", page_size=16, log_requests=True)
    values = dataclasses.asdict(args)
    assert list(values) == [row[0] for row in _native.server_args_fields()]
    assert tokenmill.ServerArgs(**values) == args
    assert values["schedule_policy"] == "lpm" and values["mem_fraction_static"] == 0.88 and values["page_size"] == 16
    assert repr(args).startswith("ServerArgs(model_path='m', tokenizer_path=None,")
    with pytest.raises(TypeError, match="model_path"):
        tokenmill.ServerArgs()


def test_server_args_from_flags():
    parser = argparse.ArgumentParser()
    tokenmill.ServerArgs.add_cli_args(parser)
    flags = ["--model-path", "m", "--mem-fraction-static", "0.5", "--log-requests", "--no-enable-mixed-chunk",
             "--context-length", "None", "--max-running-requests", "7"]
    args = tokenmill.ServerArgs.from_cli_args(parser.parse_args(flags))
    assert args == tokenmill.ServerArgs(model_path="m", mem_fraction_static=0.5, log_requests=True,
                                        enable_mixed_chunk=False, max_running_requests=7)
    assert "--page-size" in parser.format_help()


@pytest.mark.parametrize("kwargs, error, message", [
    ({"model_pth": "x"}, TypeError, "Did you mean 'model_path'"),
    ({"model_path": "x", "attention_backend": "fa3"}, TypeError, "is not needed here and can be removed"),
    ({"model_path": "x", "port": "80"}, TypeError, r"port must be int, got '80'\."),
    ({"model_path": "x", "page_size": 48}, ValueError, r"page_size must be a power of two from 1 to 64, got 48\."),
    ({"model_path": "x", "tp_size": 2}, NotImplementedError, "tp_size"),
    ({}, TypeError, "Engine needs model_path"),
    ({"model_path": "/no/such/folder"}, ValueError, "/no/such/folder"),
    ({"server_args": 3}, TypeError, "server_args must be a ServerArgs, got int"),
])
def test_bad_options(kwargs, error, message):
    with pytest.raises(error, match=message):
        tokenmill.Engine(**kwargs)


def test_engine_from_server_args():
    args = tokenmill.ServerArgs(model_path=TINY, skip_tokenizer_init=True, log_level="error", page_size=np.int64(8))
    with tokenmill.Engine(server_args=args) as engine:
        assert engine.server_args.page_size == 8
        info = engine.get_server_info()
        assert info["page_size"] == 8 and info["version"] == tokenmill.__version__
        assert info["max_total_num_tokens"] > 0 and "last_gen_throughput" in info["internal_states"][0]
        assert set(engine.stats()) >= {"requests", "finished", "aborted", "running", "queue", "prompt_tokens",
                                       "cached_tokens", "generated_tokens", "evictions", "retractions", "blocks_free",
                                       "blocks_total"}
        with pytest.raises(TypeError, match="not both"):
            tokenmill.Engine(server_args=args, port=1)


def test_sampling_params():
    params = tokenmill.SamplingParams(temperature=0.5, seed=3, stop="x")
    assert params.sampling_seed == 3
    assert tokenmill.SamplingParams(**dataclasses.asdict(params)) == params
    assert tokenmill.SamplingParams().max_new_tokens == 128
    for kwargs, error, message in (({"topp": 1}, TypeError, "did you mean 'top_p'"),
                                   ({"top_p": 2}, ValueError, r"top_p must be in \(0, 1\], got 2\.0\."),
                                   ({"seed": 1, "sampling_seed": 2}, TypeError, "got both"),
                                   ({"seed": -1}, ValueError, r"sampling_seed must be at least 0, got -1\."),
                                   ({"custom_logit_processor": 1}, TypeError, "must be a callable or None, got 1")):
        with pytest.raises(error, match=message):
            tokenmill.SamplingParams(**kwargs)


def test_a_dict_with_both_names_of_the_seed(tiny):
    with pytest.raises(TypeError, match="got both sampling_seed and its other name seed"):
        tiny.generate(input_ids=[1, 5], sampling_params={"sampling_seed": 1, "seed": 2})


def test_stubs_are_what_the_tables_say():
    result = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "make_python_stubs.py"), "--check"],
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    program = os.path.join(HERE, "typed_program.py")
    environment = {**os.environ, "MYPYPATH": os.path.dirname(os.path.dirname(tokenmill.__file__))}
    result = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), program],
                            capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import tokenmill\ntokenmill.Engine(model_path=3)\ntokenmill.SamplingParams(top_k='x')\n")
    result = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(wrong)],
                            capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 1 and "2 errors" in result.stdout, result.stdout


def test_the_typed_program_runs(python):
    path = demo_model_path()
    if path is None:
        pytest.skip("not run: the demo model is not here")
    result = subprocess.run([sys.executable, os.path.join(HERE, "typed_program.py"), path], capture_output=True,
                            text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "stop 2 True True 4 0.1.0\nTrue 1\nTrue 1\n" or result.stdout.startswith("length 2 True")


def test_logging(caplog):
    with caplog.at_level(logging.DEBUG, logger="tokenmill"):
        with make_tiny(log_level="info") as engine:
            engine.generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 2})
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("server_args=ServerArgs(model_path=")
    assert any(message.startswith("Load weight begin. avail mem=") for message in messages)
    assert any(message.startswith("Prefill batch. #new-seq: 1, #new-token: 2, #cached-token: 0") for message in messages)
    ranks = {record.getMessage().split()[0]: record.rank for record in caplog.records}
    assert ranks["Load"] == "TP0" and all(record.levelno == logging.INFO for record in caplog.records)


def test_log_lines_on_stderr(python):
    code = (f"import tokenmill\nwith tokenmill.Engine(model_path={TINY!r}, skip_tokenizer_init=True) as llm:\n"
            "    llm.generate(input_ids=[1, 2], sampling_params={'max_new_tokens': 2})\n")
    result = python(code)
    assert result.returncode == 0 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("[20") for line in lines), lines
    assert "] server_args=ServerArgs(" in lines[0] and " TP0]" not in lines[0]
    assert any(" TP0] Prefill batch. #new-seq: 1" in line for line in lines)
    quiet = python("import logging\nlogging.getLogger('tokenmill').setLevel(logging.ERROR)\n" + code)
    assert quiet.stderr == ""
    own = python("import logging\nlogging.basicConfig(format='own %(message)s')\n" + code)
    assert own.stderr.startswith("own server_args=") and "\n[20" not in own.stderr


def test_importing_brings_little(python):
    result = python("import sys, tokenmill\nprint(*sorted({'numpy', 'tqdm', 'asyncio', 'argparse', 'IPython', 'torch', "
                    "'subprocess', 'ssl'} & set(sys.modules)))", flags=())
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


def test_works_without_numpy(python):
    result = python(f"""
import sys
sys.modules["numpy"] = None
import tokenmill
with tokenmill.Engine(model_path={TINY!r}, skip_tokenizer_init=True, log_level="error") as llm:
    print(len(llm.generate(input_ids=[1], sampling_params={{"max_new_tokens": 2, "ignore_eos": True}})["output_ids"]))
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "2\n", "")


def test_custom_logit_processor(tiny):
    seen = []

    def only_seven(output_ids, logits):
        seen.append((list(output_ids), len(logits), logits.format))
        np.asarray(logits)[:] = -np.inf
        logits[7] = 0.0

    params = {"max_new_tokens": 4, "ignore_eos": True, "custom_logit_processor": only_seven}
    assert tiny.generate(input_ids=[1, 2], sampling_params=params)["output_ids"] == [7] * 4
    assert seen == [([7] * i, 512, "f") for i in range(4)]

    def by_return(output_ids, logits):
        array = np.full(512, -np.inf, dtype=np.float32)
        array[3] = 1
        return array

    plain = {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0}
    alone = tiny.generate(input_ids=[1, 2], sampling_params=plain)["output_ids"]
    mixed = tiny.generate(input_ids=[[1, 2]] * 3, sampling_params=[
        plain, {**plain, "custom_logit_processor": by_return}, tokenmill.SamplingParams(**plain)])
    assert [output["output_ids"] for output in mixed] == [alone, [3] * 4, alone]


def test_a_logit_processor_that_fails(tiny):
    def fails(output_ids, logits):
        if len(output_ids) == 2:
            raise LookupError("no such word")

    plain = {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0}
    bad, good = tiny.generate(input_ids=[[1, 2]] * 2, sampling_params=[{**plain, "custom_logit_processor": fails}, plain])
    assert bad["meta_info"]["finish_reason"] == {
        "type": "abort", "message": "custom_logit_processor failed: LookupError: no such word"}
    assert len(bad["output_ids"]) == 2 and len(good["output_ids"]) == 4
    with pytest.raises(ValueError, match="float32 logits of the vocabulary's length"):
        tiny.generate(input_ids=[1], sampling_params={**plain, "custom_logit_processor": lambda ids, logits: b"x"})


def _fails_at_third(output_ids, logits):
    if len(output_ids) == 2:
        raise LookupError("no such word")


def _masks_at_third(output_ids, logits):
    if len(output_ids) == 2:
        np.asarray(logits)[:] = -np.inf


@pytest.mark.parametrize("processor, says", [(_fails_at_third, "custom_logit_processor failed: LookupError: no such word"),
                                             (_masks_at_third, "every token was masked")])
@pytest.mark.parametrize("n", [1, 2])
def test_what_cannot_be_sampled(tiny, processor, says, n):
    plain = {"max_new_tokens": 6, "ignore_eos": True, "temperature": 0}
    bad = {**plain, "custom_logit_processor": processor, "n": n}
    alone = tiny.generate(input_ids=[1, 2], sampling_params=plain)["output_ids"]
    # A single prompt raises, whole or streamed, here or on an event loop; chunks before it are told.
    with pytest.raises(ValueError, match=says):
        tiny.generate(input_ids=[1, 2], sampling_params=bad)
    told = {i: [] for i in range(n)}
    with pytest.raises(ValueError, match=says):
        for chunk in tiny.generate(input_ids=[1, 2], sampling_params=bad, stream=True):
            told[chunk.get("index", 0)] += chunk["output_ids"]
    assert told[0] == alone[:2]

    async def whole():
        await tiny.async_generate(input_ids=[1, 2], sampling_params=bad)

    async def streamed(told):
        async for chunk in await tiny.async_generate(input_ids=[1, 2], sampling_params=bad, stream=True):
            told[chunk.get("index", 0)] += chunk["output_ids"]

    with pytest.raises(ValueError, match=says):
        asyncio.run(whole())
    told = {i: [] for i in range(n)}
    with pytest.raises(ValueError, match=says):
        asyncio.run(streamed(told))
    assert told[0] == alone[:2]

    # One of a list, and of an iterable, ends by itself.
    def check(outputs):
        for output in outputs[:n]:
            assert says in output["meta_info"]["finish_reason"]["message"] and output["output_ids"] == alone[:2]
        assert outputs[n]["output_ids"] == alone and len(outputs) == n + 1

    check(tiny.generate(input_ids=[[1, 2]] * 2, sampling_params=[bad, plain]))
    check(asyncio.run(tiny.async_generate(input_ids=[[1, 2]] * 2, sampling_params=[bad, plain])))
    found = dict(tiny.generate_iter(input_ids=[[1, 2]] * 2, sampling_params=iter([bad, plain])))
    check([found[i] for i in range(n + 1)])
    assert len(tiny.generate(input_ids=[[1, 2]], sampling_params=bad)) == n


def test_leaving_amid_a_logit_processor(python):
    result = python(f"""
import sys, time, tokenmill
llm = tokenmill.Engine(model_path={TINY!r}, skip_tokenizer_init=True, log_level="error")
stream = llm.generate(input_ids=[1], stream=True, sampling_params={{
    "max_new_tokens": 400, "ignore_eos": True, "custom_logit_processor": lambda ids, logits: time.sleep(0.01)}})
next(stream)
sys.exit(4)
""")
    assert (result.returncode, result.stdout, result.stderr) == (4, "", "")


def test_run_batch(tiny, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"custom_id": f"c{i}", "input_ids": [1, 2 + i]}) + "\n" for i in range(50)))
    params = {"max_new_tokens": 3, "ignore_eos": True, "temperature": 0}
    report = tiny.run_batch(source, target, params)
    assert (report["total"], report["done"], report["failed"], report["resumed"]) == (50, 50, 0, 0)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"c{i}" for i in range(50))
    again = tiny.run_batch(str(source), str(target), params)
    assert (again["done"], again["resumed"]) == (0, 50)
    with pytest.raises(ValueError):
        tiny.run_batch(tmp_path / "missing.jsonl", target, params)


def test_cache_salt(tiny):
    prompt = list(range(1, 101))
    params = {"max_new_tokens": 1}
    tiny.generate(input_ids=prompt, sampling_params=params, cache_salt="one")
    cached = [tiny.generate(input_ids=prompt, sampling_params=params, cache_salt=salt)["meta_info"]["cached_tokens"]
              for salt in ("two", "one")]
    assert cached == [0, 99]
