"""A prompt that you tokenise yourself, here with the engine's own tokenizer.    python input_ids.py [MODEL]"""
import sys

import tokenmill


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    with tokenmill.Engine(model_path=model, log_level="warning") as llm:
        tokenizer = llm.get_tokenizer()
        ids = tokenizer.encode("The capital of France is")
        output = llm.generate(input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": 8})
        print(ids, "->", output["output_ids"], repr(output["text"]))
        assert tokenizer.decode(output["output_ids"]) == output["text"]


if __name__ == "__main__":
    main()
