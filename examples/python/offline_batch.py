"""Four prompts at once.    python offline_batch.py [MODEL]"""
import sys

import tokenmill


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    prompts = ["Hello, my name is", "The president of the United States is", "The capital of France is",
               "The future of AI is"]
    with tokenmill.Engine(model_path=model, log_level="warning") as llm:
        outputs = llm.generate(prompts, {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 32, "seed": 1})
        for prompt, output in zip(prompts, outputs):
            print(f"Prompt: {prompt}\nGenerated text: {output['text']}\n")


if __name__ == "__main__":
    main()
