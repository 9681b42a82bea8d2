"""Mouth-to-ear latency by correlation: chirps leave the speaker and come back by the microphone.

The session plays chirps in place of what it decodes. What it plays and what it decodes are written
in step, sample for sample, so the lag between the two is the time from the playback queue through
speaker, air, microphone, encoder and decoder back to that queue: mouth to ear, and once the air.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound.chirp import chirp, correlation
from encodec_rt.types import Audio

CHIRPS = 10
SETTLING_S = 2.0
SPACING_S = (0.35, 0.65)
LONGEST_S = 2.0
"""The largest delay that is looked for."""
_REACH_S = 0.06
_AGREEMENT_S = 0.005
_NEEDED = 0.6


@dataclass(frozen=True)
class Delay:
    """The measured delay: the median, the extremes, and how many of the chirps agree with it."""

    median_ms: float
    lowest_ms: float
    highest_ms: float
    agreeing: int
    chirps: int


class Probe:
    """Plays chirps and keeps what comes back, as ``replace_output`` of a Duplex."""

    def __init__(self, rate_hz: int) -> None:
        """The chirps begin after ``SETTLING_S``, irregularly spaced so that lags are distinct."""
        self.rate_hz = rate_hz
        spacing = np.random.default_rng(0).uniform(*SPACING_S, CHIRPS)
        self.starts = (np.cumsum(spacing) + SETTLING_S) * rate_hz
        length = int(self.starts[-1] + LONGEST_S * rate_hz)
        self._sound = np.zeros(length, np.float32)
        self._chirp = chirp(rate_hz)
        for start in self.starts.astype(int):
            self._sound[start : start + len(self._chirp)] = self._chirp
        self._captured: list[Audio] = []
        self._heard: list[Audio] = []
        self._position = 0

    @property
    def done(self) -> bool:
        """Whether all was played, and the last chirp has had time to come back."""
        return self._position >= len(self._sound)

    def replace_output(self, captured: Audio, heard: Audio) -> Audio:
        """The next ``len(heard)`` samples to play; both arguments are kept."""
        self._captured.append(captured)
        self._heard.append(heard)
        start, self._position = self._position, self._position + len(heard)
        played = self._sound[start : self._position]
        return np.pad(played, (0, len(heard) - len(played)))

    def before_codec(self) -> Delay | None:
        """The delay by the microphone's signal, or None if the chirps are not in it."""
        return self._delay(self._captured)

    def after_codec(self) -> Delay | None:
        """The delay by the decoder's output, or None if the chirps are not in it."""
        return self._delay(self._heard)

    def require(self) -> Delay:
        """``before_codec``, or AudioDeviceError if nothing came back."""
        delay = self.before_codec()
        if delay is None:
            raise AudioDeviceError(
                "the microphone did not hear the chirps; turn up the speaker and put the "
                "microphone near it, or join output and input with a cable"
            )
        return delay

    def _delay(self, pieces: list[Audio]) -> Delay | None:
        received = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        received = np.pad(received[: len(self._sound)], (0, len(self._sound)))
        likeness = np.abs(correlation(received, self._chirp))
        starts = self.starts.astype(int)
        lags = np.arange(int(LONGEST_S * self.rate_hz))
        common = int(np.argmax(sum(likeness[start + lags] for start in starts)))
        reach = int(_REACH_S * self.rate_hz)
        around = np.arange(max(0, common - reach), common + reach)
        found = np.array([around[np.argmax(likeness[start + around])] for start in starts])
        middle = np.median(found)
        near = found[np.abs(found - middle) <= _AGREEMENT_S * self.rate_hz]
        if len(near) < _NEEDED * len(found) or not likeness.any():
            return None
        scale = 1000 / self.rate_hz
        return Delay(
            float(np.median(near)) * scale,
            float(near.min()) * scale,
            float(near.max()) * scale,
            len(near),
            len(found),
        )
