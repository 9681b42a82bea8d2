"""Samples as 16-bit integers, converted in one way everywhere; and times as sample numbers."""

from __future__ import annotations

import numpy as np

from encodec_rt.errors import InputError
from encodec_rt.types import Audio, Samples

MAX_SAMPLES = 2**62
"""No file counts further."""


def to_int16(audio: Audio) -> Samples:
    """``audio`` times 32768, rounded to even and clipped to 16 bits."""
    samples: Samples = np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16)
    return samples


def sample_at(seconds: float, rate_hz: int) -> int:
    """The index of the sample at a time. Raises InputError for a time beyond any file."""
    if not 0 <= seconds * rate_hz <= MAX_SAMPLES:
        raise InputError(
            f"a time of {seconds:g} s; accepted: 0 to {MAX_SAMPLES / rate_hz:.2g} s at {rate_hz} Hz"
        )
    return round(seconds * rate_hz)
