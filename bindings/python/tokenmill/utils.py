"""Helpers for notebooks.

A notebook's kernel always runs an event loop, in which plain asyncio.run() fails. Importing this module under IPython
lets asyncio.run() in a cell run in a helper thread; restore_asyncio() undoes that. Importing tokenmill alone changes
nothing.
"""
from __future__ import annotations

import asyncio
import contextvars
import html
import sys
import threading
from typing import Any, Callable, Coroutine, List, Optional

_original_run: Callable[..., Any] = asyncio.run


def _ipython() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None


def print_highlight(content: Any) -> None:
    """Shows text in bold, HTML escaped, in a notebook; prints it elsewhere."""
    shell = _ipython()
    if shell is None or not hasattr(shell, "kernel"):
        print(content)
        return
    from IPython.display import HTML, display

    text = html.escape(str(content)).replace("\n", "<br>")
    display(HTML(f"<strong style='color: #00008B;'>{text}</strong>"))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_beside(main: Coroutine[Any, Any, Any], **kwargs: Any) -> Any:
    """asyncio.run() that works in a thread with a running loop: it runs in another and waits here."""
    if not _loop_is_running():
        return _original_run(main, **kwargs)
    results: List[Any] = []
    errors: List[BaseException] = []
    started: List[Any] = []  # the helper's loop and task, for Ctrl-C
    context = contextvars.copy_context()

    async def outer() -> Any:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await main

    def work() -> None:
        try:
            results.append(context.run(_original_run, outer(), **kwargs))
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)

    helper = threading.Thread(target=work, name="asyncio.run")
    helper.start()
    interrupt: Optional[BaseException] = None
    while helper.is_alive():
        try:
            helper.join(0.2)
        except KeyboardInterrupt as error:
            interrupt = error
            if started:
                loop, task = started[0]
                loop.call_soon_threadsafe(task.cancel)
    if interrupt is not None:
        raise interrupt
    if errors:
        raise errors[0]
    return results[0]


def _patch_asyncio() -> None:
    if _ipython() is not None:
        asyncio.run = _run_beside


def restore_asyncio() -> None:
    """Gives asyncio.run() back as it was before this module was imported under IPython."""
    if asyncio.run is _run_beside:
        asyncio.run = _original_run


_patch_asyncio()
