"""The arguments of generate() and its kin, checked and put into the engine's form."""
from __future__ import annotations

import json
import operator
from typing import Any, Dict, List, Optional, TypedDict, Union

from . import _native
from ._options import sampling_values

TEXT, IDS, MESSAGES = 0, 1, 2
# What may be one value for all prompts or a list with one a prompt.
_PER_PROMPT = ("return_logprob", "logprob_start_len", "top_logprobs_num", "lora_path", "priority",
               "cache_salt", "return_prompt_token_ids")


class RequestArgs(TypedDict, total=False):
    """generate()'s arguments besides prompt and sampling_params. Of most, a list of prompts may have one a prompt."""

    return_logprob: Union[bool, List[bool]]  # logprobs of output tokens, in meta_info
    logprob_start_len: Union[int, List[int], None]  # None: outputs only
    top_logprobs_num: Union[int, List[int], None]  # per position, the k likeliest
    token_ids_logprob: Any  # a list of token ids for all, or one a prompt
    lora_path: Union[str, List[Optional[str]], None]
    rid: Union[str, List[str], None]  # ids for abort(); made where not given
    priority: Union[int, List[int], None]  # larger first, with schedule_policy='priority'
    cache_salt: Union[str, List[Optional[str]], None]  # prefixes are shared only among requests with the same one
    return_prompt_token_ids: Union[bool, List[bool]]


REQUEST_DEFAULTS: Dict[str, Any] = dict(return_logprob=False, logprob_start_len=None, top_logprobs_num=None,
                                        token_ids_logprob=None, lora_path=None, rid=None, priority=None,
                                        cache_salt=None, return_prompt_token_ids=False)


def request_fields(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """All of RequestArgs' fields. Raises TypeError for a name that is none of them."""
    for name in kwargs:
        if name not in REQUEST_DEFAULTS:
            raise TypeError(f"unexpected argument {name!r}; known: {', '.join(REQUEST_DEFAULTS)}.")
    return {**REQUEST_DEFAULTS, **kwargs}


class Prepared:
    """One call, ready for submit: prompts, their options and ids."""

    __slots__ = ("kind", "prompts", "options", "rids", "single", "samples", "first")

    def __init__(self, kind: int, prompts: List[Any], options: List[Any], rids: Optional[List[Any]],
                 single: bool, first: int) -> None:
        self.kind = kind
        self.prompts = prompts
        self.options = options
        self.rids = rids
        self.single = single
        self.first = first  # position of the first prompt in the caller's list
        count = len(prompts)
        self.samples: int = options[0].n * count if len(options) == 1 else sum(option.n for option in options)

    def is_short(self) -> bool:
        """Whether submitting takes milliseconds at most."""
        if self.kind == IDS:
            return len(self.prompts) <= 64
        return sum(len(prompt) for prompt in self.prompts) <= 4096


def _is_number(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _ids_prompts(input_ids: Any) -> "tuple[List[Any], bool]":
    input_ids = _as_list(input_ids)
    if not isinstance(input_ids, (list, tuple)):
        raise TypeError(f"input_ids must be a list of int or a list of these, got {type(input_ids).__name__}.")
    if len(input_ids) == 0:
        raise ValueError("input_ids cannot be empty.")
    if _is_number(input_ids[0]) or isinstance(input_ids[0], (bool, float, str)):
        return [input_ids], True
    return [_as_list(ids) for ids in input_ids], False


_BYTES_HINT = " Bytes are decoded first: .decode('utf-8')."


def _text_hint(value: Any) -> str:
    """What to do with what is given in the place of text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _BYTES_HINT
    return " Token ids are given as input_ids." if _is_number(value) or isinstance(value, (list, tuple)) else ""


def _text_prompts(prompt: Any, first: int) -> "tuple[List[Any], bool]":
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, (bytes, bytearray, memoryview)) or not isinstance(prompt := _as_list(prompt), (list, tuple)):
        raise TypeError(f"prompt must be str or a list of str, got {type(prompt).__name__}.{_text_hint(prompt)}")
    for index, text in enumerate(prompt, first):
        if not isinstance(text, str):
            raise TypeError(f"prompt must be str or a list of str, got {type(text).__name__} at position {index}."
                            f"{_text_hint(text)}")
    return list(prompt), False


def _to_json(conversation: Any, place: str) -> str:
    try:
        return json.dumps(conversation, ensure_ascii=False)
    except TypeError as error:
        hint = _BYTES_HINT if "bytes" in str(error) or "bytearray" in str(error) else ""
        raise TypeError(f"messages must hold what JSON can say{place}: {error}.{hint}") from None


def _message_prompts(messages: Any) -> "tuple[List[Any], bool]":
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TypeError("messages must be a non-empty list of {'role': …, 'content': …} or a list of such lists.")
    single = isinstance(messages[0], dict)
    conversations = [messages] if single else messages
    for conversation in conversations:
        if not isinstance(conversation, (list, tuple)) or not all(isinstance(m, dict) for m in conversation):
            raise TypeError("messages must be a list of {'role': …, 'content': …} or a list of such lists.")
    places = [""] if single else [f", in the conversation at position {i}" for i in range(len(conversations))]
    return [_to_json(conversation, place) for conversation, place in zip(conversations, places)], single


def _spread(name: str, value: Any, count: int) -> List[Any]:
    if len(value) != count:
        raise ValueError(f"{name} must be one for all or a list of {count} (one a prompt), got a list of {len(value)}.")
    return list(value)


class OptionsMaker:
    """Makes RequestOptions; equal parameter objects of a call are converted once."""

    def __init__(self, fixed: Dict[str, Any]) -> None:
        self._fixed = fixed
        self._last: Any = None
        self._last_key: Any = None

    def make(self, params: Any, varying: Dict[str, Any]) -> Any:
        key = (id(params), tuple(varying.values()))
        if self._last is None or key != self._last_key:
            values = {**self._fixed, **varying}
            for name in ("return_logprob", "return_prompt_token_ids"):
                if not isinstance(values[name], bool) and type(values[name]).__name__ not in ("bool_", "bool"):
                    raise TypeError(f"{name} must be bool, got {values[name]!r}.")
                values[name] = bool(values[name])
            for name in ("logprob_start_len", "top_logprobs_num", "priority"):
                values[name] = _whole(name, values[name], name == "logprob_start_len")
            for name in ("lora_path", "cache_salt"):
                if values[name] is not None:
                    if not isinstance(values[name], str):
                        raise TypeError(f"{name} must be str | None, got {values[name]!r}.")
                    _native.check_text(name, values[name])
            self._last = _native.RequestOptions(sampling_params=sampling_values(params), **values)
            self._last_key = key
        return self._last


def _whole(name: str, value: Any, optional: bool) -> Optional[int]:
    if value is None and optional:
        return None
    if not _is_number(value):
        raise TypeError(f"{name} must be int{' | None' if optional else ''}, got {value!r}.")
    number = operator.index(value)
    if not -2**63 <= number < 2**63:
        raise ValueError(f"{name} must be a 64-bit int, got {number}.")
    return number


def _options(sampling_params: Any, fields: Dict[str, Any], token_ids_logprob: Any, chat_kwargs: str, single: bool,
             count: int, first: int = 0) -> List[Any]:
    fixed: Dict[str, Any] = {"chat_kwargs_json": chat_kwargs}
    varying: Dict[str, List[Any]] = {}
    for name in _PER_PROMPT:
        value = fields[name]
        value = 0 if value is None and name in ("top_logprobs_num", "priority") else _as_list(value)
        if isinstance(value, (list, tuple)) and not single:
            varying[name] = _spread(name, value, count)
        else:
            fixed[name] = value
    token_ids_logprob = _as_list(token_ids_logprob)
    is_ids = token_ids_logprob is None or all(_is_number(item) for item in token_ids_logprob)
    per_prompt_ids = None if is_ids or single else _spread("token_ids_logprob", token_ids_logprob, count)
    if per_prompt_ids is None:
        fixed["token_ids_logprob"] = token_ids_logprob
    per_prompt_params = None
    if isinstance(sampling_params, (list, tuple)):
        if single:
            raise TypeError("sampling_params must be a dict or a SamplingParams for a single prompt, got a list.")
        per_prompt_params = _spread("sampling_params", sampling_params, count)
    maker = OptionsMaker(fixed)
    if not varying and per_prompt_params is None and per_prompt_ids is None:
        return [maker.make(sampling_params, {})]
    options = []
    for i in range(count):
        row = {name: values[i] for name, values in varying.items()}
        if per_prompt_ids is not None:
            maker = OptionsMaker({**fixed, "token_ids_logprob": per_prompt_ids[i]})
        try:
            options.append(maker.make(per_prompt_params[i] if per_prompt_params is not None else sampling_params, row))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{error} (of the prompt at position {first + i})") from None
    return options


def make_options(sampling_params: Any, return_logprob: bool, top_logprobs_num: int) -> Any:
    """RequestOptions of a call that has no list of prompts."""
    fields = {**REQUEST_DEFAULTS, "return_logprob": return_logprob, "top_logprobs_num": top_logprobs_num}
    return _options(sampling_params, fields, None, "{}", True, 1)[0]


def _rids(rid: Any, single: bool, count: int) -> Optional[List[Any]]:
    if rid is None:
        return None
    rids = [rid] if isinstance(rid, str) else rid
    if not isinstance(rids, (list, tuple)) or not all(item is None or isinstance(item, str) for item in rids):
        raise TypeError(f"rid must be str or, for a list of prompts, a list of str, got {rid!r}.")
    if len(rids) != count:
        raise ValueError(f"rid must name every prompt: a list of {count}, got {len(rids)}.")
    return list(rids)


def prepare(prompt: Any, sampling_params: Any, input_ids: Any, messages: Any, fields: Dict[str, Any],
            first: int = 0) -> Prepared:
    """Checks the arguments of one call. fields: what _PER_PROMPT names, token_ids_logprob, rid and chat_kwargs.

    first: position of the first prompt in the caller's list, for messages.
    """
    given = [value is not None for value in (prompt, input_ids, messages)]
    if not any(given):
        raise ValueError("Either text or input_ids should be provided.")
    if sum(given) > 1:
        raise ValueError(f"Only one of text, input_ids and messages can be provided, got {sum(given)}.")
    if prompt is not None:
        kind = TEXT
        prompts, single = _text_prompts(prompt, first)
    elif input_ids is not None:
        kind = IDS
        prompts, single = _ids_prompts(input_ids)
    else:
        kind = MESSAGES
        prompts, single = _message_prompts(messages)
    options = _options(sampling_params, fields, fields["token_ids_logprob"], fields.get("chat_kwargs", "{}"), single,
                       len(prompts), first)
    return Prepared(kind, prompts, options, _rids(fields["rid"], single, len(prompts)), single, first)
