"""Logit processors: a callable of your own that looks at, and changes, the logits of one request."""
from __future__ import annotations

from typing import Any, Callable, List

# Called before each token of its request is drawn: (output_ids, logits) -> None. output_ids: the tokens generated so
# far; logits: a writable float32 memoryview of the vocabulary's length, changed in place (np.asarray(logits) is an array
# over the same memory; it must not be kept). It runs before penalties, bans, temperature and the cuts, on the engine's
# thread and under the GIL, so it holds all requests up: keep it short. What it raises ends its request: in a list with
# finish_reason abort, alone with ValueError, its text in the message.
LogitProcessor = Callable[[List[int], Any], None]
