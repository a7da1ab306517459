"""Token ids in, token ids out: the engine loads no tokenizer.    python token_ids.py [MODEL]"""
import sys

import tokenmill


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    with tokenmill.Engine(model_path=model, skip_tokenizer_init=True, log_level="warning") as llm:
        prompts = [[1, 338, 259], [7042, 30]]
        outputs = llm.generate(input_ids=prompts, sampling_params={"temperature": 0, "max_new_tokens": 8})
        for prompt, output in zip(prompts, outputs):
            print(prompt, "->", output["output_ids"])


if __name__ == "__main__":
    main()
