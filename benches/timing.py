"""Timing for the GPU benches: frames on the host, replays on the device, and time limits."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from benches.rows import Contender
from benches.workload import frames

FRAME_MS = 1000 / 75
AT_ONCE = 4
"""Replays queued before the timed one, so that the device does not wait for its launch."""


class TimeBudget:
    """A number of seconds that a part of the bench may take in all."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self._end = time.perf_counter() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """The seconds that are left, ``at_most`` at the most."""
        return max(0.0, min(at_most, self._end - time.perf_counter()))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block once ``seconds`` have passed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not finished within its {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, stop)
    begun = time.perf_counter()
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        left = left and max(1e-3, left - (time.perf_counter() - begun))
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection inside the block, so that it is not timed."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def wait_until(due: float) -> None:
    """Sleep, then spin for the last half millisecond, since a sleep may overrun."""
    while (left := due - time.perf_counter()) > 0:
        if left > 1e-3:
            time.sleep(left - 5e-4)


def wall_ms(
    runner: Contender,
    audio: Tensor,
    hop: int,
    *,
    paced: bool = False,
    flush: Tensor | None = None,
    limit_s: float = float("inf"),
) -> tuple[list[float], list[float]]:
    """The ms of each encode and each decode of [S, n] audio on the host, frame by frame.

    ``flush``, a tensor at least as large as the device's cache, is written first, so that the cache
    is cold. Stops after ``limit_s``.
    """
    encoding, decoding = [], []
    due = begun = time.perf_counter()
    for pcm in frames(audio, hop):
        if time.perf_counter() - begun > limit_s:
            break
        if flush is not None:
            flush.zero_()
            torch.cuda.synchronize()
        if paced:
            due += FRAME_MS / 1000
            wait_until(due)
        start = time.perf_counter()
        codes = runner.encode(pcm)
        between = time.perf_counter()
        runner.decode(codes)
        end = time.perf_counter()
        encoding.append(1e3 * (between - start))
        decoding.append(1e3 * (end - between))
    return encoding, decoding


def replay_ms(replay: Callable[[], None], count: int, limit_s: float = float("inf")) -> list[float]:
    """The device time in ms of each of ``count`` replays; fewer after ``limit_s``.

    Each follows other replays without a pause.
    """
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < count and (not times or time.perf_counter() - begun < limit_s):
        begin, end = (torch.cuda.Event(True) for _ in range(2))
        for _ in range(AT_ONCE):
            replay()
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times
