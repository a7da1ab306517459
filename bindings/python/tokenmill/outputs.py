"""What a call gives back, as types. At run time these are plain dicts."""
from __future__ import annotations

from typing import List, Optional, Tuple, TypedDict, Union

# (natural-log probability or None at position 0, token id, its text or None without a tokenizer)
TokenLogprob = Tuple[Optional[float], int, Optional[str]]


class _FinishReasonType(TypedDict):
    type: str  # "length", "stop" or "abort"


class FinishReason(_FinishReasonType, total=False):
    length: int  # of "length": tokens generated
    matched: Union[int, str, None]  # of "stop": the token id or the stop string
    message: str  # of "abort": why


class _MetaInfo(TypedDict):
    id: str
    finish_reason: Optional[FinishReason]  # None before the last chunk
    prompt_tokens: int
    completion_tokens: int  # counts are cumulative in every chunk
    cached_tokens: int
    num_retractions: int
    e2e_latency: float  # seconds since the call


class MetaInfo(_MetaInfo, total=False):
    input_token_logprobs: List[TokenLogprob]
    output_token_logprobs: List[TokenLogprob]
    input_top_logprobs: List[List[TokenLogprob]]
    output_top_logprobs: List[List[TokenLogprob]]
    input_token_ids_logprobs: List[List[TokenLogprob]]
    output_token_ids_logprobs: List[List[TokenLogprob]]


class _Output(TypedDict):
    text: str
    output_ids: List[int]
    meta_info: MetaInfo


class Output(_Output, total=False):
    """One finished sample, or one streamed chunk, whose text, output_ids and output logprobs are deltas."""

    index: int  # of streamed lists and of n > 1 samples: the place in the list that stream=False gives
    prompt_token_ids: List[int]  # with return_prompt_token_ids
