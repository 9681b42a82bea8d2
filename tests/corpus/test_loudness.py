"""Loudness as ITU-R BS.2217 and EBU Tech 3341 check it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from encodec_rt.corpus.loudness import LoudnessMeter, gain_for
from encodec_rt.types import Audio
from tests.support.tolerances import bound


def sine(level_db: float, seconds: float, rate_hz: int, channels: int = 2) -> Audio:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = 10 ** (level_db / 20) * np.sin(2 * np.pi * 1000 * time)
    return np.tile(wave.astype(np.float32), (channels, 1))


def measured(audio: Audio, rate_hz: int, size: int) -> LoudnessMeter:
    meter = LoudnessMeter(rate_hz)
    for at in range(0, audio.shape[1], size):
        meter.add(audio[:, at : at + size])
    return meter


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("size", [5_777, 24_000])
def test_the_signals_of_ebu_tech_3341_have_the_loudness_it_says(rate_hz: int, size: int) -> None:
    signals = {
        "1": ([(-23, 5.0)], -23.0),
        "3": ([(-36, 2.5), (-23, 15.0), (-36, 2.5)], -23.0),
        "4": ([(-72, 2.5), (-36, 2.5), (-23, 15.0), (-36, 2.5), (-72, 2.5)], -23.0),
    }
    for parts, wanted in signals.values():
        audio = np.concatenate([sine(level, s, rate_hz) for level, s in parts], axis=1)
        lufs = measured(audio, rate_hz, size).lufs
        assert abs(lufs - wanted) < bound("loudness", "LU")


def test_the_gain_reaches_the_loudness_and_stops_at_full_scale() -> None:
    audio = sine(-40, 2.0, 24_000, channels=1)
    meter = measured(audio, 24_000, 24_000)
    louder = audio * np.float32(gain_for(meter, -30.0))
    assert abs(measured(louder, 24_000, 999).lufs + 30) < bound("loudness", "LU")
    audio[0, 100] = 0.5
    assert gain_for(measured(audio, 24_000, 24_000), -10.0) == pytest.approx(2.0)


def test_silence_and_less_than_a_block_stay_as_they_are() -> None:
    for audio in (np.zeros((1, 24_000), np.float32), sine(-20, 0.3, 24_000)):
        meter = measured(audio, 24_000, 1_000)
        assert meter.lufs == -math.inf
        assert gain_for(meter, -23.0) == 1.0
