"""The engine's log lines go to the Python logger `tokenmill`, and to stderr where the program has set up no logging.

The engine's threads only queue them; one Python thread hands them on, so that a busy interpreter never holds the engine
up. A record's message is the line without its prefix; `record.rank` is "TP0" or "".
"""
from __future__ import annotations

import logging
import re
import sys
import threading
import time
from typing import Optional

from . import _native

logger = logging.getLogger("tokenmill")
_PREFIX = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)( TP\d+)?\] ")
_WAIT_MS = 500


class _StderrHandler(logging.Handler):
    """Writes SGLang's form of a line to stderr, unless the program logs by itself: then its handlers have the say."""

    def emit(self, record: logging.LogRecord) -> None:
        if len(logger.handlers) > 1 or (logger.propagate and logging.getLogger().handlers):
            return
        rank = getattr(record, "rank", "")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        sys.stderr.write(f"[{when}{' ' + rank if rank else ''}] {record.getMessage()}\n")
        sys.stderr.flush()


def _emit(level: int, line: str) -> None:
    if not logger.isEnabledFor(level):
        return
    found = _PREFIX.match(line)
    text = line[found.end():] if found else line
    record = logger.makeRecord(logger.name, level, "tokenmill", 0, text, (), None, None,
                               {"rank": (found.group(2) or "").strip() if found else ""})
    logger.handle(record)


class LogPump:
    """The queue that engines write to, and the thread that empties it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self.queue = _native.LogQueue()

    def start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.DEBUG)  # each engine's log_level decides what comes this far
            if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
                logger.addHandler(_StderrHandler())
            self._thread = threading.Thread(target=self._run, name="tokenmill-log", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Hands on what waits."""
        with self._lock:
            for level, line in self.queue.take():
                _emit(level, line)

    def stop(self) -> None:
        self.queue.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1)
        self.flush()

    def _run(self) -> None:
        while self.queue.wait(_WAIT_MS):
            self.flush()


pump = LogPump()


def reset_after_fork() -> None:
    """A child has no pump thread, and the queue's lock may have been held."""
    global pump
    _native.after_fork()
    pump = LogPump()
