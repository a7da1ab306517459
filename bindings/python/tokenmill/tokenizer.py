"""The engine's tokenizer, with the method names of Hugging Face's."""
from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Sequence, Union

from ._request import _to_json


class Tokenizer:
    """Text to token ids and back. From Engine.get_tokenizer(); it serves as long as the engine does."""

    def __init__(self, native: Any) -> None:
        native.encode_text("", False)  # raises ValueError where the engine has no tokenizer
        self._native = native

    def encode(self, text: str, add_special_tokens: bool = True) -> List[int]:
        """The text's token ids: those that generate() gives a prompt of that text, or without special tokens."""
        ids: List[int] = self._native.encode_text(text, add_special_tokens)
        return ids

    def decode(self, token_ids: Union[int, Sequence[int]], skip_special_tokens: bool = False) -> str:
        """The ids' text; bytes that are no UTF-8 become U+FFFD."""
        ids = token_ids if hasattr(token_ids, "__len__") else [token_ids]
        text: str = self._native.decode_ids(ids, skip_special_tokens)
        return text

    def apply_chat_template(self, conversation: Sequence[Dict[str, Any]], tools: Optional[Sequence[Any]] = None,
                            add_generation_prompt: bool = False, tokenize: bool = True,
                            **kwargs: Any) -> Union[str, List[int]]:
        """The conversation in the model's own form: token ids, or text with tokenize=False.

        kwargs go to the template, such as enable_thinking=False. Raises ValueError where the model has no template or
        the template refuses the conversation.
        """
        if tools is not None:
            kwargs["tools"] = list(tools)
        text: str = self._native.apply_chat_template(_to_json(list(conversation), ""), add_generation_prompt,
                                                     json.dumps(kwargs))
        return self.encode(text, add_special_tokens=False) if tokenize else text

    @property
    def eos_token_ids(self) -> List[int]:
        """All ids that end an output, sorted: of generation_config.json, config.json and the tokenizer."""
        ids: List[int] = self._native.eos_token_ids()
        return ids

    @property
    def eos_token_id(self) -> Optional[int]:
        """The tokenizer's end-of-text id; where the model's files name others too, eos_token_ids has them all."""
        token: Optional[int] = self._native.eos_token_id()
        return token

    @property
    def bos_token_id(self) -> Optional[int]:
        """The id that starts a text, None where the model has none."""
        token: Optional[int] = self._native.bos_token_id()
        return token

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding table."""
        size: int = self._native.vocab_size()
        return size

    def __len__(self) -> int:
        return self.vocab_size
