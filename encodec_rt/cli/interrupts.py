"""Requests to end: Ctrl-C, SIGTERM and SIGHUP end every command in the same way.

The first one raises KeyboardInterrupt, or cancels the event loop's main task, so that recordings
and checkpoints are finished. A second one meanwhile is ignored, the third ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
PATIENCE = 3
"""After this many requests a process that is cleaning up ends immediately."""
RETRY_S = 0.005
"""A request that came where an exception would be lost is sent again after this time."""

_received: list[int] = []
_wanted = threading.Event()


class InterruptedWork(Exception):
    """A piece of work was interrupted; an ordinary exception, so it can cross processes."""


def cut_short() -> bool:
    """Whether a request to end came before the command had done its work."""
    return bool(_received) and not _wanted.is_set()


def was_wanted() -> None:
    """Say that the request is how this command ends: an error from now on is one of its own."""
    _wanted.set()


def exit_status() -> int:
    """The exit status of a command that was asked to end, as shells give it: 130 for Ctrl-C."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def handle_requests_to_end() -> None:
    """From now on raise KeyboardInterrupt for the first of them.

    One that the parent process chose to ignore, as nohup does with SIGHUP, stays ignored.
    """
    for number in _heeded():
        signal.signal(number, _raise)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started within the block ignore Ctrl-C and SIGHUP, which are sent to whole groups.

    Their parent passes on that it was asked to end, by SIGTERM.
    """
    numbers = [number for number in _heeded() if number != signal.SIGTERM]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_parent() -> Iterator[None]:
    """Within the block SIGTERM raises InterruptedWork; in a process begun by ``deaf_children``."""
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedWork from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_until_ended(work: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run`` of ``work``, which a request to end cancels; then KeyboardInterrupt."""

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            if _note(number):
                task.cancel()

        if threading.current_thread() is threading.main_thread() and os.name == "posix":
            for number in _heeded():
                loop.add_signal_handler(number, cancel, number)
        await work

    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        asyncio.run(watched())
    except asyncio.CancelledError:
        if not _received:
            raise
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _heeded() -> list[int]:
    return [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


def _note(number: int) -> bool:
    """Whether this request is the first; the one too many does not return."""
    _received.append(number)
    if len(_received) >= PATIENCE:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return len(_received) == 1


def _in_callback(frame: FrameType | None) -> bool:
    """Whether libsndfile called the running code, by one of soundfile's ``vio_`` functions.

    An exception that leaves such a function is printed and lost, and the write counts as failed.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_name.startswith("vio_") and Path(code.co_filename).name == "soundfile.py":
            return True
        frame = frame.f_back
    return False


def _raise(number: int, frame: FrameType | None) -> None:
    if _in_callback(frame):
        again = threading.Timer(RETRY_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    elif _note(number):
        raise KeyboardInterrupt
