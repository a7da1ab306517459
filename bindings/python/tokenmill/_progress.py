"""The bar of use_tqdm."""
from __future__ import annotations

import time
from typing import Optional

from .outputs import Output


class ProgressBar:
    """tqdm over finished samples, with tokens a second. total None: not known yet."""

    def __init__(self, total: Optional[int]) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

        self._bar = tqdm(total=total, desc="Processed prompts", unit="prompt", dynamic_ncols=True)
        self._start = time.perf_counter()
        self._tokens = 0

    def add(self, output: Output) -> None:
        self.set(self._bar.total, self._bar.n + 1, self._tokens + output["meta_info"]["completion_tokens"])

    def set(self, total: Optional[int], finished: int, tokens: int) -> None:
        self._tokens = tokens
        self._bar.total = total
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self._bar.set_postfix_str(f"output {tokens / seconds:.1f} tokens/s", refresh=False)
        self._bar.update(finished - self._bar.n)

    def close(self) -> None:
        self._bar.close()
