"""A logit processor: this one allows digits only, then ends the text.    python custom_logit_processor.py [MODEL]"""
import sys

import tokenmill


class DigitsOnly:
    """Leaves the tokens that are digits, and the end of text once there are enough of them."""

    def __init__(self, tokenizer, count):
        digits = {tokenizer.encode(digit, add_special_tokens=False)[0] for digit in "0123456789"}
        self.digits, self.end, self.count = digits, tokenizer.eos_token_ids[0], count

    def __call__(self, output_ids, logits):
        allowed = self.digits if len(output_ids) < self.count else {self.end}
        kept = {token: logits[token] for token in allowed}
        for token in range(len(logits)):
            logits[token] = kept.get(token, float("-inf"))


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else tokenmill.demo_model()
    with tokenmill.Engine(model_path=model, log_level="warning") as llm:
        params = {"temperature": 0, "max_new_tokens": 16,
                  "custom_logit_processor": DigitsOnly(llm.get_tokenizer(), count=6)}
        output = llm.generate("A random number: ", params)
        print(output["text"], output["meta_info"]["finish_reason"])


if __name__ == "__main__":
    main()
