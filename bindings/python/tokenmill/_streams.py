"""Chunks as they come: the iterators that generate(stream=True) and its asynchronous twin give back."""
from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Any, AsyncGenerator, Deque, Dict, Generator, Optional, Tuple

from . import _native
from .outputs import Output

if TYPE_CHECKING:
    import asyncio

# How long a waiting thread stays away from Python at most; Ctrl-C is seen that often.
WAIT_MS = 100


# Set when the interpreter is about to go: calls that end then do so without a word.
leaving = False


def failure(error: BaseException) -> BaseException:
    """What to raise for a call that the engine ended: a thread that leaving the program cuts off just ends."""
    return SystemExit() if leaving else error


class Stream(Generator[Output, None, None]):
    """The chunks of one call, in order of arrival. Closing or dropping it ends the requests within one step."""

    def __init__(self, owner: Any, call: Any, mailbox: Any, samples: int, on_close: Any) -> None:
        self._owner = owner  # an engine lives as long as its streams
        self._call = call
        self._mailbox = mailbox
        self._unfinished = samples
        self._chunks: Deque[Output] = collections.deque()
        self._on_close = on_close
        self._error: Optional[BaseException] = None  # told once the chunks before it are
        self._taken = False

    def wait_until_taken(self) -> None:
        """Until the engine has the call. Raises what is wrong with it."""
        while not self._taken:
            self._fetch()
        if self._error is not None and not self._chunks:
            error, self._error = self._error, None
            raise failure(error)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Output:
        while not self._chunks:
            if self._error is not None:
                error, self._error = self._error, None
                raise failure(error)
            if self._unfinished == 0:
                raise StopIteration
            self._fetch()
        return self._chunks.popleft()

    def _fetch(self) -> None:
        try:
            while not self._mailbox.wait(1, WAIT_MS):
                pass
        except BaseException:
            self.close()
            raise
        for _, _, finished, payload in self._mailbox.take():
            self._taken = True
            if payload is None:
                continue
            if isinstance(payload, BaseException):
                self._unfinished = 0
                self._error = payload
                return
            self._unfinished -= finished
            self._chunks.append(payload)
        if self._unfinished == 0:
            self._on_close()

    def send(self, value: None) -> Output:
        return self.__next__()

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Output:
        """Closes the stream and raises, as a generator that does not catch would."""
        self.close()
        raise typ if val is None else val

    def close(self) -> None:
        """Ends what has not finished."""
        if self._unfinished > 0:
            self._unfinished = 0
            self._call.abort()
            self._on_close()
        self._chunks.clear()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the interpreter or the engine is going
            pass


# As Mailbox.take() gives it: call, index, whether that sample is finished, its output or an error (None: call taken).
Mail = Tuple[int, int, bool, Any]


class AsyncSink:
    """Where one call's mail goes on its event loop. Used on the loop's thread only."""

    __slots__ = ("inbox", "mail", "taken", "waiter")

    def __init__(self, inbox: "LoopInbox") -> None:
        self.inbox = inbox
        self.mail: Deque[Mail] = collections.deque()
        self.taken = False
        self.waiter: "Optional[asyncio.Future[None]]" = None  # told of the next piece, once

    def wait(self) -> "asyncio.Future[None]":
        """Done when something comes."""
        waiter = self.waiter = self.inbox.make_future(loop=self.inbox.loop)
        return waiter

    async def get(self) -> "Mail":
        while not self.mail:
            await self.wait()
        return self.mail.popleft()

    async def wait_until_taken(self) -> None:
        """Until the engine has the call. Raises what is wrong with it."""
        while not self.taken:
            await self.wait()
        if self.mail and isinstance(self.mail[0][3], BaseException):
            raise failure(self.mail[0][3])


class LoopInbox:
    """One event loop's mailbox: the loop watches its file descriptor while calls are open, and holds nothing after."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make_future: Any) -> None:
        self.loop = loop
        self.make_future = make_future  # asyncio.Future: every token may need one, and a loop's create_future is Python
        self.mailbox = _native.Mailbox(True)
        self._sinks: Dict[int, AsyncSink] = {}
        self._watched = False

    def open(self, call: int) -> AsyncSink:
        sink = self._sinks[call] = AsyncSink(self)
        if not self._watched:
            self.loop.add_reader(self.mailbox.fileno(), self._on_mail)
            self._watched = True
        return sink

    def close(self, call: int) -> None:
        """On the loop's thread, or on any once the loop is closed."""
        self._sinks.pop(call, None)
        if not self._sinks and self._watched:
            self._watched = False
            if not self.loop.is_closed():
                self.loop.remove_reader(self.mailbox.fileno())

    def close_from_anywhere(self, call: int) -> None:
        try:
            self.loop.call_soon_threadsafe(self.close, call)
        except RuntimeError:  # the loop is closed
            self.close(call)

    def _on_mail(self) -> None:
        # Once a token of each stream: what can be spared here is.
        sinks = self._sinks
        for mail in self.mailbox.take():
            sink = sinks.get(mail[0])
            if sink is None:
                continue
            sink.taken = True
            if mail[3] is not None:
                sink.mail.append(mail)
            waiter = sink.waiter
            if waiter is not None:
                sink.waiter = None
                if not waiter.done():
                    waiter.set_result(None)


class LoopInboxes:
    """The inboxes of an engine, one an event loop that has used it and is not closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_loop: Dict[int, LoopInbox] = {}

    def of_running_loop(self) -> LoopInbox:
        import asyncio  # a program that gets here has it; others need not wait for it

        loop = asyncio.get_running_loop()
        with self._lock:
            inbox = self._by_loop.get(id(loop))
            if inbox is None or inbox.loop is not loop:
                for key in [key for key, other in self._by_loop.items() if other.loop.is_closed()]:
                    del self._by_loop[key]
                inbox = self._by_loop[id(loop)] = LoopInbox(loop, asyncio.Future)
            return inbox


class AsyncStream(AsyncGenerator[Output, None]):
    """The chunks of one call. Cancelling its task, closing or dropping it ends the requests within one step."""

    def __init__(self, owner: Any, call: Any, inbox: LoopInbox, number: int, sink: AsyncSink, samples: int) -> None:
        self._owner = owner  # an engine lives as long as its streams
        self._call = call
        self._inbox = inbox
        self._number = number
        self._sink = sink
        self._unfinished = samples
        self._open = True

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> Output:
        if self._unfinished == 0:
            raise StopAsyncIteration
        sink = self._sink
        mail = sink.mail
        while not mail:
            try:
                await sink.wait()
            except BaseException:
                await self.aclose()
                raise
        _, _, finished, payload = mail.popleft()
        if finished:  # so is an error
            if isinstance(payload, BaseException):
                self._end()
                raise failure(payload)
            self._unfinished -= 1
            if self._unfinished == 0:
                self._end()
        chunk: Output = payload
        return chunk

    def _end(self) -> None:
        self._unfinished = 0
        if self._open:
            self._open = False
            self._inbox.close(self._number)

    async def asend(self, value: None) -> Output:
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> Output:
        """Closes the stream and raises, as a generator that does not catch would."""
        await self.aclose()
        raise typ if val is None else val

    async def aclose(self) -> None:
        """Ends what has not finished."""
        if self._unfinished > 0:
            self._call.abort()
        self._end()

    def __del__(self) -> None:
        if not getattr(self, "_open", False):
            return
        try:
            if self._unfinished > 0:
                self._call.abort()
            self._inbox.close_from_anywhere(self._number)
        except Exception:  # the interpreter or the engine is going
            pass
