from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.voice.activity import EnergyDetector, level_db

HOP = 320
FRAME_S = HOP / 24_000


def noise(db: float, frames: int, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal((frames, HOP)) * 10 ** (db / 20)
    return samples.astype(np.float32)


def test_level_is_in_decibels_below_full_scale() -> None:
    assert level_db(np.ones(HOP, np.float32)) == pytest.approx(0)
    assert level_db(np.full(HOP, 0.1, np.float32)) == pytest.approx(-20, abs=1e-4)
    assert level_db(np.zeros(HOP, np.float32)) == -120


def test_speech_above_steady_noise_is_told_from_it() -> None:
    detector = EnergyDetector(frame_s=FRAME_S, hangover_s=0.0)
    quiet = [detector.is_active(frame) for frame in noise(-50, 600)]
    loud = [detector.is_active(frame) for frame in noise(-25, 40, seed=1)]
    assert not any(quiet[450:])
    assert all(loud)


def test_the_hangover_keeps_the_end_of_a_word() -> None:
    detector = EnergyDetector(frame_s=FRAME_S, hangover_s=10 * FRAME_S)
    for frame in noise(-25, 5):
        assert detector.is_active(frame)
    after = [detector.is_active(np.zeros(HOP, np.float32)) for _ in range(15)]
    assert after == [True] * 10 + [False] * 5


def test_digital_silence_does_not_make_dither_count_as_speech() -> None:
    detector = EnergyDetector(frame_s=FRAME_S, hangover_s=0.0)
    for _ in range(100):
        detector.is_active(np.zeros(HOP, np.float32))
    assert not detector.is_active(noise(-80, 1)[0])
