"""Measurements of a recording: where it is active, and its bandwidth."""

from __future__ import annotations

import numpy as np

from encodec_rt.types import Floats

ACTIVE_DBFS = -48.0
_WINDOW_S = 0.02
_LONGEST_GAP_S = 0.4


def active_spans(audio: Floats, sampling_rate: int) -> list[tuple[int, int]]:
    """(start, length) in samples of the spans above -48 dBFS in mono audio [n].

    The level is taken over blocks of 20 ms, and spans less than 0.4 s apart are joined.
    """
    window = int(sampling_rate * _WINDOW_S)
    count = len(audio) // window
    if count == 0:
        return []
    power = np.square(audio[: count * window].reshape(count, window)).mean(1)
    loud = np.flatnonzero(power > 10 ** (ACTIVE_DBFS / 10))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > _LONGEST_GAP_S / _WINDOW_S)
    firsts = loud[np.concatenate([[0], breaks + 1])]
    lasts = loud[np.concatenate([breaks, [len(loud) - 1]])]
    return [(int(a) * window, int(b - a + 1) * window) for a, b in zip(firsts, lasts, strict=True)]


def bandwidth_hz(audio: Floats, sampling_rate: int) -> float:
    """The frequency in Hz above which mono audio [n] has less than a millionth of its power.

    0 for silence.
    """
    size = 2048
    if len(audio) < size:
        audio = np.pad(audio, (0, size - len(audio)))
    count = min(len(audio) // size, 512)
    starts = np.linspace(0, len(audio) - size, count).astype(int)
    frames = np.stack([audio[s : s + size] for s in starts]) * np.hanning(size)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(0)
    above = np.cumsum(power[::-1])[::-1]
    if above[0] <= 0:
        return 0.0
    inside = np.flatnonzero(above > above[0] * 1e-6)
    return float(inside[-1] * sampling_rate / size)
