"""Samples as integers, the one way that every file, device and processor has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encodec_rt.types import Audio


def to_int16(audio: Audio) -> NDArray[np.int16]:
    """``audio`` times 32768, rounded to even and clipped to 16 bits."""
    samples: NDArray[np.int16] = np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16)
    return samples
