"""A part of audio that comes in blocks."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from encodec_rt.pcm import sample_at
from encodec_rt.types import Audio


def excerpt(
    blocks: Iterable[Audio], rate_hz: int, begin_s: float, end_s: float | None
) -> Generator[Audio, None, int]:
    """``blocks`` [channels, n] from ``begin_s`` to ``end_s``, or to the end for None.

    Nothing beyond is read. Returns how many samples were read.
    """
    first = sample_at(begin_s, rate_hz)
    last = None if end_s is None else sample_at(end_s, rate_hz)
    at = 0
    for block in blocks:
        size = block.shape[1]
        yield block[:, max(0, first - at) : size if last is None else max(0, last - at)]
        at += size
        if last is not None and at >= last:
            break
    return at
