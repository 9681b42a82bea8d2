"""Telling speech from silence by energy, for discontinuous transmission and comfort noise."""

from __future__ import annotations

import math

import numpy as np

from encodec_rt.types import Audio

MIN_FLOOR_DB = -65.0
"""The lowest noise floor; below it, faint dither would count as speech."""
FLOOR_RISE_DB_PER_S = 3.0
MARGIN_DB = 9.0


def level_db(pcm: Audio) -> float:
    """The level of ``pcm`` in dB relative to full scale; -120 for digital silence."""
    power = float(np.mean(np.square(pcm, dtype=np.float64))) if pcm.size else 0.0
    return 10 * math.log10(max(power, 1e-12))


class EnergyDetector:
    """Says for each frame whether it holds anything above the background noise.

    The noise floor falls immediately with the quietest frame and rises slowly (minimum statistics).
    """

    def __init__(self, *, frame_s: float, hangover_s: float = 0.16) -> None:
        """``hangover_s``: how long frames count as speech after it ends, so no word is cut."""
        self._rise_db = FLOOR_RISE_DB_PER_S * frame_s
        self._hangover = round(hangover_s / frame_s)
        self._left = self._hangover
        self.floor_db = MIN_FLOOR_DB

    def is_active(self, pcm: Audio) -> bool:
        """Whether the next frame has speech, and should be sent."""
        level = level_db(pcm)
        self.floor_db = max(MIN_FLOOR_DB, min(level, self.floor_db + self._rise_db))
        if level > self.floor_db + MARGIN_DB:
            self._left = self._hangover
            return True
        self._left -= 1
        return self._left >= 0
