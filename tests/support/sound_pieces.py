"""Which pieces of a sound arrived whole, and in which order, by way of a real sound server."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from tests.support.tolerances import bound

RATE = 24_000


def low(sound):
    """The part below 1.5 kHz, where a fraction of a sample's delay matters little."""
    spectrum = np.fft.rfft(sound)
    spectrum[1500 * len(sound) // RATE :] = 0
    return np.fft.irfft(spectrum, len(sound))


def likeness(piece, sound):
    """How like ``piece`` (correlation) ``sound`` is, from each of its places on."""
    size = 1 << (len(sound) + len(piece)).bit_length()
    inner = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(piece, size)), size)
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=float))])
    local = np.sqrt(energy[len(piece) :] - energy[: -len(piece)])
    norm = np.linalg.norm(piece)
    return inner[: len(local)] / (norm * np.maximum(local, 1e-3 * norm))


def shares(sent, received, seconds, *, period=None):
    """Of each piece of ``sent``: its place in ``received``, and its likeness there.

    What is the same in every ``period`` of ``sent`` tells nothing about the place.
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


def check_order(found, wanted, counts, *, over="server") -> None:
    """Most pieces arrived whole, in the order in which they were sent.

    A host that stands still for a while costs the pieces that it happened in, and two pieces that
    are alike may be taken for each other.
    """
    ordered = []
    for place, likeness in found:
        if likeness > wanted:
            # The longest run in order, by the lowest end that a run of each length can have.
            at = bisect_right(ordered, place)
            ordered[at : at + 1] = [place]
    share = len(ordered) / len(found)
    print(f"{share:.2f} of {len(found)} pieces arrived whole and in order")
    assert share >= bound(f"whole over the {over}", "share"), f"{found} {counts}"
