"""A conversation, streamed; the model's chat template is applied.    python chat.py [MODEL]"""
import sys

import tokenmill


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    messages = []
    with tokenmill.Engine(model_path=model, log_level="warning") as llm:
        for question in ("Name a colour.", "And another one?"):
            messages.append({"role": "user", "content": question})
            print(f"user: {question}\nassistant: ", end="")
            reply = ""
            for chunk in llm.chat(messages, {"temperature": 0, "max_new_tokens": 40}, stream=True):
                reply += chunk["text"]
                print(chunk["text"], end="", flush=True)
            print()
            messages.append({"role": "assistant", "content": reply})


if __name__ == "__main__":
    main()
