"""A program that uses the package's types; mypy --strict must pass it, and it runs."""
import asyncio
import sys
from typing import List

import tokenmill
from tokenmill import Engine, Output, SamplingParams, ServerArgs


def texts(outputs: List[Output]) -> List[str]:
    return [output["text"] for output in outputs]


async def stream(engine: Engine) -> int:
    count = 0
    async for chunk in await engine.async_generate("Hello", {"max_new_tokens": 3, "ignore_eos": True}, stream=True):
        count += len(chunk["output_ids"])
    one = await engine.async_generate("Hello", SamplingParams(temperature=0, max_new_tokens=1))
    return count + one["meta_info"]["completion_tokens"]


def main() -> int:
    args = ServerArgs(model_path=sys.argv[1], log_level="error")
    with Engine(server_args=args) as engine:
        params = SamplingParams(temperature=0, max_new_tokens=4, stop=["\n"])
        one: Output = engine.generate("The capital of France is", params)
        many: List[str] = texts(engine.generate(["a", "b"], [params, params]))
        chunks = [chunk["text"] for chunk in engine.generate("Hello", params, stream=True)]
        reason = one["meta_info"]["finish_reason"]
        kind = "" if reason is None else reason["type"]
        ids: List[int] = engine.get_tokenizer().encode("Hello")
        print(kind, len(many), len(chunks) > 0, len(ids) > 0, asyncio.run(stream(engine)), tokenmill.__version__)
        for index, output in engine.generate_iter(iter(["x", "y"]), {"max_new_tokens": 1}):
            print(index in (0, 1), output["meta_info"]["completion_tokens"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
