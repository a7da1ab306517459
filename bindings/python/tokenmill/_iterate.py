"""generate_iter: an iterable in, results out as they finish, with a bounded number in flight."""
from __future__ import annotations

import collections
import time
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from . import _native
from ._request import prepare, request_fields
from ._streams import WAIT_MS, failure
from .outputs import Output

IN_FLIGHT_MAX = 4096  # prompts pulled whose output the caller has not had yet
_BATCH = 64  # prompts submitted together
_BATCH_SECONDS = 0.005  # prompts that come more slowly are submitted sooner, down to one at a time


class _Iteration:
    """Pulls prompts, submits them in small batches and collects what finishes. All on the caller's thread."""

    def __init__(self, engine: Any, kind: str, prompts: Iterator[Any], params: Any, per_prompt: bool,
                 make_bar: Optional[Callable[[], Any]], fields: Dict[str, Any]) -> None:
        self._engine = engine
        self._kind = kind
        self._prompts = prompts
        self._params = params
        self._per_prompt = per_prompt
        self._make_bar = make_bar  # None: no progress bar
        self._bar: Any = None
        self._fields = fields
        self._mailbox = _native.Mailbox(False)
        self._calls: Dict[int, List[Any]] = {}  # number -> [call, first index, samples left]
        self._next_call = 0
        self._next_index = 0
        self._next_prompt = 0
        self._in_flight = 0
        self._exhausted = False
        self._slow = False  # the last batch took its time
        self._done: Deque[Tuple[int, Output]] = collections.deque()

    def _pulled(self) -> int:
        return self._in_flight + len(self._done)

    def _pull(self) -> "Tuple[List[Any], List[Any]]":
        prompts: List[Any] = []
        params: List[Any] = []
        self._slow = False
        deadline = time.monotonic() + _BATCH_SECONDS
        while not self._slow and len(prompts) < _BATCH and self._pulled() + len(prompts) < IN_FLIGHT_MAX:
            try:
                prompts.append(next(self._prompts))
            except StopIteration:
                self._exhausted = True
                break
            if self._per_prompt:
                try:
                    params.append(next(self._params))
                except StopIteration:
                    raise ValueError("sampling_params ended before the prompts did.") from None
            self._slow = time.monotonic() >= deadline
        return prompts, params

    def _top_up(self) -> None:
        prompts, params = self._pull()
        if not prompts:
            return
        given = {"prompt": None, "input_ids": None, self._kind: prompts}
        prepared = prepare(given["prompt"], params if self._per_prompt else self._params, given["input_ids"], None,
                           self._fields, self._next_prompt)
        self._next_prompt += len(prompts)
        number = self._next_call
        self._next_call += 1
        call = self._engine._submit(prepared, self._mailbox, number, False, not prepared.is_short())
        self._calls[number] = [call, self._next_index, prepared.samples]
        self._next_index += prepared.samples
        self._in_flight += prepared.samples

    def _collect(self) -> None:
        for number, index, _, payload in self._mailbox.take():
            if isinstance(payload, BaseException):
                raise failure(payload)
            entry = self._calls[number]
            self._done.append((entry[1] + index, payload))
            self._in_flight -= 1
            if self._bar is not None:
                self._bar.add(payload)
            entry[2] -= 1
            if entry[2] == 0:
                del self._calls[number]

    def run(self) -> Iterator[Tuple[int, Output]]:
        try:
            self._bar = self._make_bar() if self._make_bar is not None else None
            while True:
                while not self._exhausted and self._pulled() < IN_FLIGHT_MAX and not len(self._mailbox):
                    self._top_up()
                if self._in_flight == 0:
                    return
                while not self._mailbox.wait(1, WAIT_MS):
                    pass
                self._collect()
                # What is done does not wait for a slow source.
                if not self._exhausted and not self._slow and self._pulled() < IN_FLIGHT_MAX:
                    self._top_up()  # keeps the engine fed while the caller looks at what is done
                while self._done:
                    yield self._done.popleft()
        finally:
            for call, _, _ in self._calls.values():
                call.abort()
            if self._bar is not None:
                self._bar.close()


def iterate(engine: Any, prompt: Any, sampling_params: Any, input_ids: Any, make_bar: Optional[Callable[[], Any]],
            kwargs: Dict[str, Any]) -> Iterator[Tuple[int, Output]]:
    if prompt is None and input_ids is None:
        raise ValueError("Either text or input_ids should be provided.")
    if prompt is not None and input_ids is not None:
        raise ValueError("Only one of text, input_ids and messages can be provided, got 2.")
    kind, source = ("prompt", prompt) if prompt is not None else ("input_ids", input_ids)
    if isinstance(source, str) or not hasattr(source, "__iter__"):
        raise TypeError(f"{kind} must be an iterable of prompts, got {type(source).__name__}.")
    if kwargs.get("rid") is not None:
        raise TypeError("rid cannot be given to generate_iter: its prompts are not known beforehand.")
    fields = request_fields(kwargs)
    per_prompt = sampling_params is not None and not isinstance(sampling_params, dict) and hasattr(
        sampling_params, "__iter__")
    params: Optional[Any] = iter(sampling_params) if per_prompt else sampling_params
    return _Iteration(engine, kind, iter(source), params, per_prompt, make_bar, fields).run()
