"""The four modes, over token ids: shapes of results, order, deltas, errors of arguments."""
import asyncio
import os
import threading
import time

import numpy as np
import pytest

import tokenmill
from conftest import ROOT, make_tiny

GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
IDS = [1, 5, 9, 13]


def test_one_prompt(tiny):
    output = tiny.generate(input_ids=IDS, sampling_params=GREEDY, rid="mine")
    assert set(output) == {"text", "output_ids", "meta_info"}
    assert output["text"] == ""
    assert len(output["output_ids"]) == 8
    meta = output["meta_info"]
    assert set(meta) == {"id", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens",
                         "num_retractions", "e2e_latency"}
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (4, 8)
    assert meta["e2e_latency"] > 0


def test_positional_order(tiny):
    by_name = tiny.generate(prompt=None, sampling_params=GREEDY, input_ids=IDS)
    assert tiny.generate(None, GREEDY, IDS)["output_ids"] == by_name["output_ids"]


def test_a_list_keeps_its_order_and_its_parameters(tiny):
    prompts = [[1, 5, i] for i in range(20)]
    params = [{**GREEDY, "max_new_tokens": 1 + i % 5} for i in range(20)]
    outputs = tiny.generate(input_ids=prompts, sampling_params=params)
    assert [len(output["output_ids"]) for output in outputs] == [1 + i % 5 for i in range(20)]
    for prompt, param, output in zip(prompts, params, outputs):
        assert tiny.generate(input_ids=prompt, sampling_params=param)["output_ids"] == output["output_ids"]
        assert "index" not in output


def test_empty_list_of_prompts(demo):
    assert demo.generate([], GREEDY) == []


def test_numpy_is_welcome(tiny):
    plain = tiny.generate(input_ids=IDS, sampling_params=GREEDY)["output_ids"]
    params = {"temperature": np.float32(0), "max_new_tokens": np.int64(8), "ignore_eos": np.bool_(True),
              "stop_token_ids": np.array([3, 4]), "logit_bias": {np.int32(7): np.float64(0.0)}}
    assert tiny.generate(input_ids=np.array(IDS), sampling_params=params)["output_ids"] == plain
    assert tiny.generate(input_ids=[np.int32(i) for i in IDS], sampling_params=params)["output_ids"] == plain
    outputs = tiny.generate(input_ids=np.array([IDS, IDS]), sampling_params=params)
    assert [output["output_ids"] for output in outputs] == [plain, plain]
    outputs = tiny.generate(input_ids=[np.array(IDS)], sampling_params=params, return_logprob=np.bool_(True),
                            token_ids_logprob=np.array([1, 2]))
    assert [pair[1] for pair in outputs[0]["meta_info"]["output_token_ids_logprobs"][0]] == [1, 2]


def test_samples(tiny):
    outputs = tiny.generate(input_ids=IDS, sampling_params={"n": 3, "max_new_tokens": 4, "seed": 1, "ignore_eos": True})
    assert len(outputs) == 3
    both = tiny.generate(input_ids=[IDS, [2, 3]],
                         sampling_params={"n": 2, "max_new_tokens": 4, "seed": 1, "ignore_eos": True})
    assert [output["output_ids"] for output in both[:2]] == [output["output_ids"] for output in outputs[:2]]
    assert [output["meta_info"]["prompt_tokens"] for output in both] == [4, 4, 2, 2]


@pytest.mark.parametrize("prompts", [IDS, [IDS, [2, 3]]])
def test_streamed_samples_have_their_index(tiny, prompts):
    params = {"n": 3, "max_new_tokens": 4, "seed": 1, "ignore_eos": True}
    wholes = [output["output_ids"] for output in tiny.generate(input_ids=prompts, sampling_params=params)]
    joined = [[] for _ in wholes]
    for chunk in tiny.generate(input_ids=prompts, sampling_params=params, stream=True):
        joined[chunk["index"]] += chunk["output_ids"]
    assert joined == wholes

    async def main():
        streamed = [[] for _ in wholes]
        async for chunk in await tiny.async_generate(input_ids=prompts, sampling_params=params, stream=True):
            streamed[chunk["index"]] += chunk["output_ids"]
        return streamed

    assert asyncio.run(main()) == wholes


def test_logprobs(tiny):
    output = tiny.generate(input_ids=IDS, sampling_params=GREEDY, return_logprob=True, top_logprobs_num=3,
                           token_ids_logprob=[7, 11], return_prompt_token_ids=True)
    meta = output["meta_info"]
    assert output["prompt_token_ids"] == IDS
    assert meta["input_token_logprobs"] == []
    assert [pair[1] for pair in meta["output_token_logprobs"]] == output["output_ids"]
    for (logprob, token, text), top, named in zip(meta["output_token_logprobs"], meta["output_top_logprobs"],
                                                  meta["output_token_ids_logprobs"]):
        assert logprob <= 0 and text is None
        assert len(top) == 3 and top[0][1] == token and top[0][0] == logprob
        assert [pair[1] for pair in named] == [7, 11]


def test_per_prompt_arguments(tiny):
    outputs = tiny.generate(input_ids=[IDS, IDS], sampling_params=GREEDY, rid=["a", "b"], return_logprob=[True, False],
                            top_logprobs_num=[2, 0])
    assert [output["meta_info"]["id"] for output in outputs] == ["a", "b"]
    assert len(outputs[0]["meta_info"]["output_top_logprobs"]) == 8
    with pytest.raises(ValueError, match=r"rid must name every prompt: a list of 2, got 1\."):
        tiny.generate(input_ids=[IDS, IDS], sampling_params=GREEDY, rid="a")


def test_stream_of_one(tiny):
    whole = tiny.generate(input_ids=IDS, sampling_params=GREEDY)["output_ids"]
    chunks = list(tiny.generate(input_ids=IDS, sampling_params=GREEDY, stream=True))
    assert [token for chunk in chunks for token in chunk["output_ids"]] == whole
    assert [chunk["meta_info"]["completion_tokens"] for chunk in chunks] == list(range(1, 9))
    assert all(chunk["meta_info"]["finish_reason"] is None for chunk in chunks[:-1])
    assert chunks[-1]["meta_info"]["finish_reason"]["type"] == "length"
    assert "index" not in chunks[0]


def test_stream_of_a_list(tiny):
    prompts = [[1, 5, i] for i in range(5)]
    wholes = [output["output_ids"] for output in tiny.generate(input_ids=prompts, sampling_params=GREEDY)]
    joined = [[] for _ in prompts]
    for chunk in tiny.generate(input_ids=prompts, sampling_params=GREEDY, stream=True):
        joined[chunk["index"]] += chunk["output_ids"]
    assert joined == wholes


def test_async_modes_in_two_loops(tiny):
    whole = tiny.generate(input_ids=IDS, sampling_params=GREEDY)["output_ids"]

    async def main():
        one = await tiny.async_generate(input_ids=IDS, sampling_params=GREEDY)
        many = await tiny.async_generate(input_ids=[IDS, IDS], sampling_params=GREEDY)
        chunks = [chunk async for chunk in await tiny.async_generate(input_ids=IDS, sampling_params=GREEDY, stream=True)]
        tasks = await asyncio.gather(*[tiny.async_generate(input_ids=[1, 5, i], sampling_params=GREEDY)
                                       for i in range(400)])
        sync = tiny.generate(input_ids=IDS, sampling_params=GREEDY)  # inside a running loop
        return ([one["output_ids"], sync["output_ids"], *[output["output_ids"] for output in many],
                 [token for chunk in chunks for token in chunk["output_ids"]]], len(tasks))

    for _ in range(2):
        results, count = asyncio.run(main())
        assert results == [whole] * 5
        assert count == 400


def test_loops_in_several_threads(tiny):
    results = []

    def work(i):
        async def main():
            outputs = await asyncio.gather(*[tiny.async_generate(input_ids=[1, i, j], sampling_params=GREEDY)
                                             for j in range(5)])
            return [output["output_ids"] for output in outputs]
        results.append((i, asyncio.run(main())))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for i, found in results:
        expected = tiny.generate(input_ids=[[1, i, j] for j in range(5)], sampling_params=GREEDY)
        assert found == [output["output_ids"] for output in expected]


def test_32_threads_at_once(tiny):
    expected = [output["output_ids"] for output in
                tiny.generate(input_ids=[[1, i] for i in range(32)], sampling_params=GREEDY)]
    results = {}

    def work(i):
        for _ in range(3):
            results[i] = tiny.generate(input_ids=[1, i], sampling_params=GREEDY)["output_ids"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(32)] == expected


def test_generate_iter_is_lazy_and_bounded(tiny):
    pulled = []

    def prompts():
        for i in range(20_000):
            pulled.append(i)
            yield [1, 2 + i % 200]

    stream = tiny.generate_iter(input_ids=prompts(), sampling_params={**GREEDY, "max_new_tokens": 1})
    assert pulled == []
    indices = [next(stream)[0] for _ in range(10)]
    assert len(set(indices)) == 10
    assert len(pulled) <= 4096 + 10
    stream.close()


def test_generate_iter_does_not_wait_for_a_slow_source(tiny):
    told, told_at_pull = [], []
    before = tiny.stats()["finished"]

    def prompts():
        for i in range(5):
            deadline = time.monotonic() + 20
            while tiny.stats()["finished"] - before < i and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)  # it is in the mail
            told_at_pull.append(len(told))
            yield [1, 5, i]

    for index, _ in tiny.generate_iter(input_ids=prompts(), sampling_params={**GREEDY, "max_new_tokens": 1}):
        told.append(index)
    assert sorted(told) == list(range(5))
    assert all(count >= i - 1 for i, count in enumerate(told_at_pull)), told_at_pull


def test_generate_iter_gives_every_index_once(tiny):
    prompts = [[1, 5, i] for i in range(300)]
    params = ({**GREEDY, "max_new_tokens": 1 + i % 3} for i in range(300))
    found = dict(tiny.generate_iter(input_ids=iter(prompts), sampling_params=params))
    assert sorted(found) == list(range(300))
    assert all(len(found[i]["output_ids"]) == 1 + i % 3 for i in found)
    with pytest.raises(ValueError, match="sampling_params ended before the prompts did"):
        list(tiny.generate_iter(input_ids=prompts, sampling_params=iter([GREEDY])))


def test_progress_bar(tiny, capsys):
    tiny.generate(input_ids=[IDS, IDS, IDS], sampling_params=GREEDY, use_tqdm=True)
    captured = capsys.readouterr()
    assert "Processed prompts: 100%" in captured.err and "3/3" in captured.err and "tokens/s" in captured.err
    assert captured.out == ""
    list(tiny.generate_iter(input_ids=iter([IDS, IDS]), sampling_params=GREEDY, use_tqdm=True))
    captured = capsys.readouterr()
    assert "Processed prompts: 2prompt" in captured.err and captured.out == ""


@pytest.mark.parametrize("kwargs, error, message", [
    ({}, ValueError, r"Either text or input_ids should be provided\."),
    ({"prompt": "a", "input_ids": [1]}, ValueError, "Only one of text, input_ids and messages can be provided, got 2"),
    ({"input_ids": []}, ValueError, r"input_ids cannot be empty\."),
    ({"input_ids": [[1], []]}, ValueError, r"input_ids cannot be empty\."),
    ({"input_ids": [1, "x"]}, TypeError, "input_ids must be made of int, got 'x'"),
    ({"input_ids": [1, True]}, TypeError, "input_ids must be made of int, got True"),
    ({"input_ids": [1.5]}, TypeError, "input_ids must be made of int, got 1.5"),
    ({"input_ids": [512]}, ValueError, r"input_ids must be made of token ids in \[0, 512\), got 512\."),
    ({"input_ids": [2**40]}, ValueError, "input_ids must be made of token ids, got 1099511627776"),
    ({"input_ids": "abc"}, TypeError, "input_ids must be a list of int"),
    ({"prompt": 5}, TypeError, "prompt must be str or a list of str, got int"),
    ({"prompt": [1, 2]}, TypeError, "got int at position 0. Token ids are given as input_ids"),
    ({"prompt": "a"}, ValueError, "skip_tokenizer_init=True cannot accept text prompts"),
    ({"input_ids": [1], "sampling_params": {"top_p": 1.5}}, ValueError, r"top_p must be in \(0, 1\], got 1\.5\."),
    ({"input_ids": [1], "sampling_params": {"temperature": float("nan")}}, ValueError, "got nan"),
    ({"input_ids": [1], "sampling_params": {"tempreature": 1}}, TypeError, "did you mean 'temperature'"),
    ({"input_ids": [1], "sampling_params": {1: 1}}, TypeError, "must have str keys"),
    ({"input_ids": [1], "sampling_params": {"top_k": "x"}}, TypeError, "top_k must be int, got 'x'"),
    ({"input_ids": [1], "sampling_params": 7}, TypeError, "sampling_params must be a dict or a SamplingParams, got int"),
    ({"input_ids": [1], "sampling_params": [{}]}, TypeError, "for a single prompt, got a list"),
    ({"input_ids": [[1], [2]], "sampling_params": [{}]}, ValueError, "one for all or a list of 2"),
    ({"input_ids": [1], "top_logprobs_num": -1}, ValueError, "top_logprobs_num must be in"),
    ({"input_ids": [1], "top_logprobs_num": "x"}, TypeError, "top_logprobs_num must be int, got 'x'"),
    ({"input_ids": [1], "token_ids_logprob": [600]}, ValueError,
     r"token_ids_logprob contains out-of-vocabulary token id 600; valid range is \[0, 512\)\."),
    ({"input_ids": [1] * 600}, ValueError,
     r"The input \(600 tokens\) is longer than the model's context length \(512 tokens\)\."),
    ({"input_ids": [1], "sampling_params": {"regex": "a"}}, NotImplementedError, "regex is not built yet"),
    ({"input_ids": [1], "lora_path": "x"}, NotImplementedError, "lora_path is not built yet"),
])
def test_bad_arguments(tiny, kwargs, error, message):
    with pytest.raises(error, match=message):
        tiny.generate(**kwargs)

    async def main():
        await tiny.async_generate(**kwargs)

    with pytest.raises(error, match=message):
        asyncio.run(main())


def test_one_bad_item_of_a_list_fails_alone(tiny):
    long, good = tiny.generate(input_ids=[[1] * 600, [1, 2]], sampling_params=GREEDY)
    assert long["meta_info"]["finish_reason"]["type"] == "abort"
    assert "longer than the model's context length" in long["meta_info"]["finish_reason"]["message"]
    assert len(good["output_ids"]) == 8


def test_a_grammar_fails_alone(tiny):
    params = [GREEDY, {**GREEDY, "json_schema": "{}"}, GREEDY]

    def check(outputs):
        assert [len(output["output_ids"]) for output in outputs] == [8, 0, 8]
        reason = outputs[1]["meta_info"]["finish_reason"]
        assert reason["type"] == "abort" and reason["message"].startswith("json_schema is not built yet")
        assert f"request '{outputs[1]['meta_info']['id']}'" in reason["message"]

    check(tiny.generate(input_ids=[[1], [2], [3]], sampling_params=params))
    check(asyncio.run(tiny.async_generate(input_ids=[[1], [2], [3]], sampling_params=params)))
    ends = {chunk["index"]: chunk["meta_info"]["finish_reason"]
            for chunk in tiny.generate(input_ids=[[1], [2], [3]], sampling_params=params, stream=True)}
    assert [ends[i]["type"] for i in range(3)] == ["length", "abort", "length"]
    found = dict(tiny.generate_iter(input_ids=[[1], [2], [3]], sampling_params=iter(params)))
    check([found[i] for i in range(3)])


def test_duplicate_rid(tiny):
    stream = tiny.generate(input_ids=IDS, sampling_params={**GREEDY, "max_new_tokens": 500}, rid="twice", stream=True)
    with pytest.raises(ValueError, match="Duplicate request ID detected: twice"):
        tiny.generate(input_ids=IDS, rid="twice")
    stream.close()


LONE = "ab\udc80"
REPLACE = r"replace it: text\.encode\('utf-16', 'surrogatepass'\)\.decode\('utf-16', 'replace'\)\."
NOT_TEXT = r"must be text without lone surrogates, got '\\udc80' as character "
DECODE = r"Bytes are decoded first: \.decode\('utf-8'\)\."


# Wherever text comes in: what it is, where it is, what to do.
@pytest.mark.parametrize("kwargs, error, message", [
    ({"prompt": LONE}, ValueError, f"^prompt {NOT_TEXT}2\\. .*{REPLACE}"),
    ({"prompt": ["a", LONE]}, ValueError, f"^prompt {NOT_TEXT}2 of the prompt at position 1\\. .*{REPLACE}"),
    ({"prompt": "a" * 5000 + LONE}, ValueError, f"^prompt {NOT_TEXT}5002\\. "),
    ({"prompt": b"a"}, TypeError, f"^prompt must be str or a list of str, got bytes\\. {DECODE}"),
    ({"prompt": bytearray(b"a")}, TypeError, f"got bytearray\\. {DECODE}"),
    ({"prompt": memoryview(b"a")}, TypeError, f"got memoryview\\. {DECODE}"),
    ({"prompt": ["a", b"a"]}, TypeError, f"got bytes at position 1\\. {DECODE}"),
    ({"input_ids": [[1], b"ab"]}, TypeError, f"input_ids must be a list of int, got b'ab'\\. {DECODE}"),
    ({"input_ids": IDS, "sampling_params": {"stop": LONE}}, ValueError, f"^stop {NOT_TEXT}2\\. .*{REPLACE}"),
    ({"input_ids": IDS, "sampling_params": {"stop": ["x", LONE]}}, ValueError, f"^stop {NOT_TEXT}2 of item 1\\. "),
    ({"input_ids": [IDS, IDS], "sampling_params": [{}, {"stop": LONE}]}, ValueError,
     f"^stop {NOT_TEXT}2\\. .*\\(of the prompt at position 1\\)$"),
    ({"input_ids": IDS, "sampling_params": {"stop": b"x"}}, TypeError, f"^stop must be .*, got b'x'\\. {DECODE}"),
    ({"input_ids": IDS, "sampling_params": {"stop": ["x", b"x"]}}, TypeError, f"^stop must be .*, got b'x'\\. {DECODE}"),
    ({"input_ids": IDS, "rid": LONE}, ValueError, f"^rid {NOT_TEXT}2\\. "),
    ({"input_ids": IDS, "cache_salt": LONE}, ValueError, f"^cache_salt {NOT_TEXT}2\\. "),
])
def test_what_is_no_text(tiny, kwargs, error, message):
    with pytest.raises(error, match=message):
        tiny.generate(**kwargs)
    with pytest.raises(error, match=message):
        tiny.generate(stream=True, **kwargs)
    with pytest.raises(error, match=message):
        asyncio.run(tiny.async_generate(**kwargs))


def test_what_is_no_text_elsewhere(tiny):
    told = [{"role": "user", "content": LONE}]
    with pytest.raises(ValueError, match=f"^messages {NOT_TEXT}[0-9]+ of the JSON\\. .*{REPLACE}"):
        tiny.chat(told)
    with pytest.raises(ValueError, match=f"^messages {NOT_TEXT}[0-9]+ of the JSON of the conversation at position 1\\. "):
        tiny.chat([[{"role": "user", "content": "a"}], told])
    with pytest.raises(TypeError, match=f"^messages must hold what JSON can say, in the conversation at position 1: .*{DECODE}"):
        tiny.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": b"a"}]])
    params = iter([GREEDY] * 200 + [{**GREEDY, "stop": LONE}])
    with pytest.raises(ValueError, match=f"^stop {NOT_TEXT}2\\. .*\\(of the prompt at position 200\\)$"):
        list(tiny.generate_iter(input_ids=[IDS] * 201, sampling_params=params))


def test_what_is_no_text_of_a_text_engine(text_engine):
    prompts = iter(["a"] * 200 + [LONE])
    with pytest.raises(ValueError, match=f"^prompt {NOT_TEXT}2 of the prompt at position 200\\. "):
        list(text_engine.generate_iter(prompts, {**GREEDY, "max_new_tokens": 1}))
    prompts = iter(["a"] * 200 + [b"a"])
    with pytest.raises(TypeError, match=f"got bytes at position 200\\. {DECODE}"):
        list(text_engine.generate_iter(prompts, {**GREEDY, "max_new_tokens": 1}))
    tokenizer = text_engine.get_tokenizer()
    with pytest.raises(ValueError, match=f"^text {NOT_TEXT}2\\. "):
        tokenizer.encode(LONE)
    with pytest.raises(TypeError, match=f"^text must be str, got b'a'\\. {DECODE}"):
        tokenizer.encode(b"a")
    with pytest.raises(ValueError, match=f"^messages {NOT_TEXT}[0-9]+ of the JSON\\. "):
        tokenizer.apply_chat_template([{"role": "user", "content": LONE}])
    assert len(text_engine.generate("ab" + LONE.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
                                    GREEDY)["output_ids"]) == 8


def test_text_modes(demo):
    params = {"temperature": 0, "max_new_tokens": 24}
    prompts = ["Hello, my name is", "The capital of France is", "naïve 日本語 🙂"]
    whole = demo.generate(prompts, params)
    joined = ["", "", ""]
    for chunk in demo.generate(prompts, params, stream=True):
        joined[chunk["index"]] += chunk["text"]
    assert joined == [output["text"] for output in whole]
    assert "Paris" in whole[1]["text"]
    with pytest.raises(ValueError, match="prompt must be text without lone surrogates"):
        demo.generate("\ud800", params)
    assert demo.generate("The capital of France is", {**params, "stop": "\n"})["meta_info"]["finish_reason"] == {
        "type": "stop", "matched": "\n"}


@pytest.mark.parametrize("vocabulary", ["bpe", "spm"])
def test_text_is_what_decode_gives(vocabulary):
    """Whole, streamed and decoded, for random ids: most bytes among them are no UTF-8."""
    path = os.path.join(ROOT, "tests", "data", "text", vocabulary)
    with make_tiny(skip_tokenizer_init=False, tokenizer_path=path) as llm:
        decode = llm.get_tokenizer().decode
        params = [{"temperature": 50.0, "max_new_tokens": 60, "ignore_eos": True, "seed": seed,
                   "skip_special_tokens": seed % 2 == 0} for seed in range(40)]
        prompts = [[1]] * len(params)
        whole = llm.generate(input_ids=prompts, sampling_params=params)
        joined = [""] * len(params)
        for chunk in llm.generate(input_ids=prompts, sampling_params=params, stream=True):
            joined[chunk["index"]] += chunk["text"]
        assert joined == [output["text"] for output in whole]
        assert sum("\ufffd" in text for text in joined) > 20
        for output, one in zip(whole, params):
            if one["skip_special_tokens"]:  # else the prompt's own token is before the text
                assert output["text"] == decode(output["output_ids"], skip_special_tokens=True)


def test_chat(demo):
    params = {"temperature": 0, "max_new_tokens": 8}
    messages = [{"role": "user", "content": "Say hello."}]
    tokenizer = demo.get_tokenizer()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    by_hand = demo.generate(text, params)
    reply = demo.chat(messages, params)
    assert reply["output_ids"] == by_hand["output_ids"]
    assert reply["meta_info"]["prompt_tokens"] == len(tokenizer.encode(text))
    assert [output["text"] for output in demo.chat([messages, messages], params)] == [reply["text"]] * 2
    assert "".join(chunk["text"] for chunk in demo.chat(messages, params, stream=True)) == reply["text"]
    assert asyncio.run(demo.async_chat(messages, params))["text"] == reply["text"]
    longer = demo.chat(messages, params, chat_template_kwargs={"add_generation_prompt": False})
    assert longer["meta_info"]["prompt_tokens"] < reply["meta_info"]["prompt_tokens"]
    for wrong in (None, [], "hi", [1], [[1]]):
        with pytest.raises(TypeError, match="messages must be"):
            demo.chat(wrong)
    with pytest.raises(TypeError, match="unexpected argument 'priorty'"):
        demo.chat(messages, params, priorty=1)


def test_tokenizer(demo, tiny):
    tokenizer = demo.get_tokenizer()
    text = "Hello, world! 日本語"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids)) == text
    assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[:1])
    assert tokenizer.vocab_size == len(tokenizer) == 49152
    assert tokenizer.eos_token_id in tokenizer.eos_token_ids
    with pytest.raises(ValueError, match="has no tokenizer"):
        tiny.get_tokenizer()


def test_not_built_yet(tiny):
    with pytest.raises(ValueError, match="does not appear to be an embedding model"):
        tiny.encode("a")
    with pytest.raises(ValueError, match="does not appear to be an embedding model"):
        asyncio.run(tiny.async_encode("a"))
    assert tokenmill.__version__ == "0.1.0"
