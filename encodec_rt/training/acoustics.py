"""Synthetic rooms, background noise and other voices, as in a call from a kitchen.

Everything is drawn from the generator that is passed in: the same seed gives the same audio.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soxr

from encodec_rt.types import Floats

_PRE_DELAY_S = (0.002, 0.02)
_DIRECT_DB = (-3.0, 12.0)
_SLOPES_DB_PER_OCTAVE = (-7.0, 0.0)
_AIR_HZ = 4_000.0
_SPEEDS = (0.8, 1.25)
_TILT_DB = (-6.0, 6.0)
_TILT_FROM_HZ = (300.0, 3_000.0)
_GAIN_DB = (-12.0, 6.0)
_PEAK = 0.99


def coloured_noise(samples: int, rng: np.random.Generator, sampling_rate: int) -> Floats:
    """Stationary noise [samples] at 0 dBFS RMS, its slope drawn from -7 to 0 dB per octave.

    From about brown, as of ventilation and traffic, to white, as of a cheap microphone; the slope
    begins at 100 Hz.
    """
    slope = float(rng.uniform(*_SLOPES_DB_PER_OCTAVE))
    frequency = np.fft.rfftfreq(samples, 1 / sampling_rate)
    gain = np.maximum(frequency / 100, 1.0) ** (slope / (20 * np.log10(2)))
    spectrum = np.fft.rfft(rng.standard_normal(samples)) * gain
    noise = np.fft.irfft(spectrum, samples)
    return (noise / max(rms(noise), 1e-9)).astype(np.float32)


def room_response(decay_s: float, rng: np.random.Generator, sampling_rate: int) -> Floats:
    """An impulse response [n]: the direct sound, then a tail that falls by 60 dB in ``decay_s``.

    The tail is noise with an exponential envelope (Polack 1988) that starts 2 to 20 ms after the
    direct sound; above 4 kHz it decays twice as fast, as in air and curtains. The direct sound's
    energy is -3 to 12 dB relative to the tail's.
    """
    samples = max(2, int(decay_s * sampling_rate))
    time = np.arange(samples) / sampling_rate
    white = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / sampling_rate)
    low_share = 1 / (1 + (frequency / _AIR_HZ) ** 4)
    low = np.fft.irfft(white * low_share, samples)
    high = np.fft.irfft(white * (1 - low_share), samples)
    decay = np.exp(-3 * np.log(10) * time / decay_s)
    tail = low * decay + high * decay**2
    direct_db = float(rng.uniform(*_DIRECT_DB))
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.square(tail).sum())
    silence = int(float(rng.uniform(*_PRE_DELAY_S)) * sampling_rate)
    response = np.concatenate([np.zeros(silence), tail])
    response[0] += 1.0
    return response.astype(np.float32)


def reverberated(
    audio: Floats, decay_s: float, rng: np.random.Generator, sampling_rate: int
) -> Floats:
    """``audio`` [n] in a room with the reverberation time ``decay_s``, at the level it had."""
    response = room_response(decay_s, rng, sampling_rate)
    size = 1 << (len(audio) + len(response) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)]
    return (wet * (rms(audio) / max(rms(wet), 1e-9))).astype(np.float32)


def another_voice(audio: Floats, rng: np.random.Generator, sampling_rate: int) -> Floats:
    """``audio`` [n] as if another speaker said it through another microphone, [0.8 n to 1.25 n].

    Played faster or slower, so that pitch, formants and tempo change together; highs raised or
    lowered by up to 6 dB above a corner of 0.3 to 3 kHz; 12 dB quieter to 6 dB louder, but below
    full scale.
    """
    speed = float(np.exp(rng.uniform(*np.log(_SPEEDS))))
    changed = soxr.resample(audio, sampling_rate * speed, sampling_rate)
    frequency = np.fft.rfftfreq(len(changed), 1 / sampling_rate)
    corner = float(np.exp(rng.uniform(*np.log(_TILT_FROM_HZ))))
    above = frequency**2 / (frequency**2 + corner**2)
    tilt = 10 ** (float(rng.uniform(*_TILT_DB)) * above / 20)
    heard = np.fft.irfft(np.fft.rfft(changed) * tilt, len(changed))
    gain = min(
        10 ** (float(rng.uniform(*_GAIN_DB)) / 20), _PEAK / max(float(np.abs(heard).max()), 1e-9)
    )
    return (heard * gain).astype(np.float32)


def at_snr(audio: Floats, noise: Floats, snr_db: float) -> Floats:
    """``audio`` plus ``noise``, both [..., n], scaled to lie ``snr_db`` below it.

    Silent noise leaves ``audio`` unchanged.
    """
    level = rms(noise)
    if level < 1e-9:
        return audio
    return audio + noise * np.float32(rms(audio) / level * 10 ** (-snr_db / 20))


def rms(audio: npt.NDArray[np.floating]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(audio, dtype=np.float64).mean()))
