"""Programme loudness after ITU-R BS.1770-5, measured block by block.

The K-weighting of its annex 1 is two biquads given for 48 kHz. Here they are designed for each rate
from their analogue prototypes, and applied through the FFT as a finite impulse response, truncated
where it has decayed by more than 150 dB.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from encodec_rt.types import Audio

Floats = npt.NDArray[np.float64]

BLOCK_S = 0.4
STEP_S = 0.1
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
MAX_PEAK = 1.0
"""The gain is limited so that no peak exceeds full scale."""

_OFFSET_LUFS = -0.691
_RESPONSE_S = 0.1
_SHELF = (1681.974450955533, 3.999843853973347, 0.7071752369554196)
"""Centre in Hz, gain in dB and Q of the head's shelf, as libebur128 derived them."""
_HIGH_PASS = (38.13547087602444, 0.5003270373238773)


class LoudnessMeter:
    """Takes audio [channels, n] as it comes; ``lufs`` is the gated loudness of all of it."""

    def __init__(self, rate_hz: int) -> None:
        self._response = _weighting(rate_hz)
        self._step = max(1, round(STEP_S * rate_hz))
        self._history: Floats | None = None
        self._rest: Floats = np.zeros((0, 0))
        self._power: list[float] = []
        self.peak = 0.0

    def add(self, audio: Audio) -> None:
        """Append ``audio`` [channels, n]."""
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0.0)))
        size = len(self._response) - 1
        if self._history is None:
            self._history = np.zeros((len(audio), size))
            self._rest = np.zeros((len(audio), 0))
        whole = np.concatenate([self._history, audio], axis=1)
        weighted = np.concatenate([self._rest, _filtered(whole, self._response)], axis=1)
        self._history = whole[:, whole.shape[1] - size :]
        steps = weighted.shape[1] // self._step
        cut = weighted[:, : steps * self._step].reshape(len(audio), steps, self._step)
        self._power += np.square(cut).mean(axis=2).sum(axis=0).tolist()
        self._rest = weighted[:, steps * self._step :]

    @property
    def lufs(self) -> float:
        """LUFS; minus infinity for silence, and for less than a block of 0.4 s."""
        per_block = round(BLOCK_S / STEP_S)
        power = np.asarray(self._power)
        if len(power) < per_block:
            return -math.inf
        blocks = np.lib.stride_tricks.sliding_window_view(power, per_block).mean(axis=1)
        loud = blocks[_lufs(blocks) > ABSOLUTE_GATE_LUFS]
        if not len(loud):
            return -math.inf
        gate = float(_lufs(loud.mean())) + RELATIVE_GATE_LU
        return float(_lufs(loud[_lufs(loud) > gate].mean()))


def gain_for(meter: LoudnessMeter, wanted_lufs: float) -> float:
    """The factor that brings what ``meter`` measured to ``wanted_lufs``; 1 for silence."""
    if not math.isfinite(meter.lufs):
        return 1.0
    gain = float(10 ** ((wanted_lufs - meter.lufs) / 20))
    return min(gain, MAX_PEAK / meter.peak) if gain > 1 else gain


def _lufs(power: Floats | float) -> Floats:
    return np.asarray(_OFFSET_LUFS + 10 * np.log10(np.maximum(power, 1e-20)))


def _filtered(audio: Floats, response: Floats) -> Floats:
    """Valid part of the convolution of each row."""
    if audio.shape[1] < len(response):
        return np.zeros((len(audio), 0))
    size = 1 << (audio.shape[1] + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(audio, size) * np.fft.rfft(response, size)
    full = np.fft.irfft(spectrum, size)
    return np.asarray(full[:, len(response) - 1 : audio.shape[1]])


@cache
def _weighting(rate_hz: int) -> Floats:
    """The impulse response of both filters."""
    impulse = np.zeros(max(8, round(_RESPONSE_S * rate_hz)))
    impulse[0] = 1.0
    return _biquad(_biquad(impulse, *_shelf(rate_hz)), *_high_pass(rate_hz))


def _shelf(rate_hz: int) -> tuple[Floats, Floats]:
    centre, gain_db, q = _SHELF
    k = math.tan(math.pi * min(centre / rate_hz, 0.49))
    high = 10 ** (gain_db / 20)
    band = high**0.4996667741545416
    scale = 1 + k / q + k * k
    b = np.array([high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k])
    return b / scale, np.array([2 * (k * k - 1), 1 - k / q + k * k]) / scale


def _high_pass(rate_hz: int) -> tuple[Floats, Floats]:
    centre, q = _HIGH_PASS
    k = math.tan(math.pi * min(centre / rate_hz, 0.49))
    scale = 1 + k / q + k * k
    a = np.array([2 * (k * k - 1), 1 - k / q + k * k]) / scale
    return np.array([1.0, -2.0, 1.0]), a


def _biquad(x: Floats, b: Floats, a: Floats) -> Floats:
    """``x`` [n] through a filter of numerator ``b`` and denominator [1, *a], as direct form I."""
    given, y = np.concatenate([np.zeros(2), x]), np.zeros(len(x) + 2)
    for n in range(2, len(y)):
        y[n] = b @ given[n - 2 : n + 1][::-1] - a[0] * y[n - 1] - a[1] * y[n - 2]
    return y[2:]
