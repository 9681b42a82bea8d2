"""A known sound, and where it comes back: for measuring latency and the echo canceller's delay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encodec_rt.types import Audio

CHIRP_S = 0.04


def chirp(rate_hz: int) -> Audio:
    """A sweep over the range that both small speakers and the codec carry well."""
    time = np.arange(int(CHIRP_S * rate_hz)) / rate_hz
    low, high = min(500.0, rate_hz / 16), min(3500.0, rate_hz / 4)
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * CHIRP_S))
    sweep: Audio = (0.5 * np.hanning(len(time)) * np.sin(phase)).astype(np.float32)
    return sweep


def correlation(received: Audio, wanted: Audio) -> NDArray[np.float64]:
    """At each position of ``received`` the inner product with ``wanted`` begun there."""
    size = 1 << (len(received) + len(wanted) - 1).bit_length()
    spectrum = np.fft.rfft(received, size) * np.conj(np.fft.rfft(wanted, size))
    return np.fft.irfft(spectrum, size)[: len(received)]
