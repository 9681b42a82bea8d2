"""Which pieces of a sound arrived intact, and in which order, through a real sound server."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.support.tolerances import bound

RATE = 24_000
Floats = NDArray[np.float64]
Sound = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int16]


def low(sound: Sound) -> Floats:
    """The part below 1.5 kHz, where a fraction of a sample's delay matters little."""
    spectrum = np.fft.rfft(sound)
    spectrum[1500 * len(sound) // RATE :] = 0
    filtered: Floats = np.fft.irfft(spectrum, len(sound))
    return filtered


def likeness(piece: Sound, sound: Sound) -> Floats:
    """The correlation of ``piece`` with ``sound`` from each place on."""
    size = 1 << (len(sound) + len(piece)).bit_length()
    inner = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(piece, size)), size)
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=float))])
    local = np.sqrt(energy[len(piece) :] - energy[: -len(piece)])
    norm = np.linalg.norm(piece)
    alike: Floats = inner[: len(local)] / (norm * np.maximum(local, 1e-3 * norm))
    return alike


def shares(
    sent: Sound, received: Sound, seconds: float, *, period: int | None = None
) -> list[tuple[int, float]]:
    """For each piece of ``sent``, ``seconds`` long, its place and correlation in ``received``.

    Whatever repeats in every ``period`` samples of ``sent`` says nothing about the place and is
    removed for the search.
    """
    count = round(seconds * RATE)
    telling = sent
    if period is not None:
        frames = sent.reshape(-1, period)
        telling = (frames - frames.mean(0)).reshape(-1)
    found = []
    for start in range(0, len(sent) - count + 1, count):
        if sent[start : start + count].any():
            place = int(np.argmax(likeness(telling[start : start + count], received)))
            near = received[max(0, place - 3) : place + 3 + count]
            found.append((place, float(likeness(sent[start : start + count], near).max())))
    return found


def check_order(
    found: Sequence[tuple[int, float]], wanted: float, counts: object, *, over: str = "server"
) -> None:
    """Assert that most pieces arrived intact and in the order in which they were sent.

    If the host stalls, the pieces of that moment are lost, and similar pieces may be confused.
    """
    ordered: list[int] = []
    for place, alike in found:
        if alike > wanted:
            # Longest increasing subsequence: the smallest possible end for each length.
            at = bisect_right(ordered, place)
            ordered[at : at + 1] = [place]
    share = len(ordered) / len(found)
    print(f"{share:.2f} of {len(found)} pieces arrived whole and in order")
    assert share >= bound(f"whole over the {over}", "share"), f"{found} {counts}"
