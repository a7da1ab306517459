"""400 tasks of one event loop, batched by the engine.    python async_batch.py [MODEL]"""
import asyncio
import sys

import tokenmill


async def ask(llm, number):
    output = await llm.async_generate(f"{number} plus {number} is", {"temperature": 0, "max_new_tokens": 8})
    return output["meta_info"]["completion_tokens"]


async def run(llm):
    tokens = await asyncio.gather(*[ask(llm, number) for number in range(400)])
    print(f"{len(tokens)} tasks, {sum(tokens)} tokens")


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    with tokenmill.Engine(model_path=model, log_level="warning") as llm:
        asyncio.run(run(llm))


if __name__ == "__main__":
    main()
