"""score(): how likely each label token is right after a query and an item."""
from __future__ import annotations

import math
import operator
from typing import Any, Dict, List

from ._request import _as_list


def _label_ids(label_token_ids: Any) -> List[int]:
    labels = _as_list(label_token_ids)
    if not isinstance(labels, (list, tuple)) or any(isinstance(label, (bool, str)) for label in labels):
        raise TypeError(f"label_token_ids must be a list of int, got {label_token_ids!r}.")
    try:
        ids = [operator.index(label) for label in labels]
    except TypeError:
        raise TypeError(f"label_token_ids must be a list of int, got {label_token_ids!r}.") from None
    if not ids:
        raise ValueError("label_token_ids must be a non-empty list of int, got [].")
    return ids


def _prompts(query: Any, items: Any, item_first: bool) -> Dict[str, List[Any]]:
    """generate()'s prompt or input_ids."""
    query, items = _as_list(query), _as_list(items)
    if isinstance(query, str):
        texts = [items] if isinstance(items, str) else items
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"items must be str or a list of str where query is str, got {type(items).__name__} with "
                            "something else in it.")
        return {"prompt": [text + query if item_first else query + text for text in texts]}
    if not isinstance(query, (list, tuple)):
        raise TypeError(f"query must be str or a list of int, got {type(query).__name__}.")
    lists = [_as_list(item) for item in items] if isinstance(items, (list, tuple)) else None
    if lists is None or not all(isinstance(item, (list, tuple)) for item in lists):
        raise TypeError("items must be a list of lists of int where query is token ids.")
    return {"input_ids": [[*item, *query] if item_first else [*query, *item] for item in lists]}


def _probabilities(logprobs: List[float], apply_softmax: bool) -> List[float]:
    largest = max(logprobs) if apply_softmax else 0.0
    if largest == -math.inf:  # none of the labels can come
        return [0.0] * len(logprobs)
    values = [math.exp(logprob - largest) for logprob in logprobs]
    total = sum(values) if apply_softmax else 1.0
    return [value / total for value in values]


def score(engine: Any, query: Any, items: Any, label_token_ids: Any, apply_softmax: bool,
          item_first: bool) -> List[List[float]]:
    labels = _label_ids(label_token_ids)
    prompts = _prompts(query, items, item_first)
    if not next(iter(prompts.values())):
        return []
    outputs = engine.generate(sampling_params={"max_new_tokens": 1, "temperature": 0}, return_logprob=True,
                              token_ids_logprob=labels, **prompts)
    scores = []
    for index, output in enumerate(outputs):
        meta = output["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            raise ValueError(f"items[{index}]: {meta['finish_reason']['message']}")
        logprobs = {token_id: logprob for logprob, token_id, _ in meta["output_token_ids_logprobs"][0]}
        scores.append(_probabilities([logprobs[label] for label in labels], apply_softmax))
    return scores
