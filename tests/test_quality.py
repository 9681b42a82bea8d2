from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from encodec_rt.errors import InputError
from encodec_rt.quality import align, log_spectral_distance_db, score, si_sdr_db

ASSETS = Path(__file__).parents[1] / "encodec_rt" / "assets"
RATE = 24_000

Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def speech() -> Samples:
    audio, rate = soundfile.read(ASSETS / "speech_it.flac", dtype="float32")
    assert rate == RATE
    clip: Samples = audio[: 4 * RATE]
    return clip


def noisy(audio: Samples, snr_db: float) -> Samples:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(len(audio)) * np.sqrt(np.square(audio).mean())
    mixed: Samples = (audio + noise * 10 ** (-snr_db / 20)).astype(np.float32)
    return mixed


def test_every_score_falls_as_noise_rises(speech: Samples) -> None:
    scores = [score(speech, noisy(speech, snr_db), RATE) for snr_db in (30, 15, 0)]
    for name in ("si_sdr_db", "zimtohrli", "pesq_wb", "estoi"):
        values = [getattr(entry, name) for entry in scores]
        assert values == sorted(values, reverse=True), name
    distances = [entry.log_spectral_distance_db for entry in scores]
    assert distances == sorted(distances)


def test_the_original_itself_gets_the_best_scores(speech: Samples) -> None:
    scores = score(speech, speech, RATE)
    assert scores.si_sdr_db > 60
    assert scores.log_spectral_distance_db == 0
    assert scores.zimtohrli > 4.8
    assert scores.estoi == pytest.approx(1, abs=1e-3)
    assert scores.pesq_wb is not None
    assert scores.pesq_wb > 4.5


def test_si_sdr_is_the_ratio_that_was_mixed_at_any_gain(speech: Samples) -> None:
    for gain in (0.1, 1.0, 3.0):
        decoded = (gain * noisy(speech, 10)).astype(np.float32)
        assert si_sdr_db(speech, decoded) == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("delay", [-700, -1, 0, 1, 700])
def test_a_delay_costs_nothing(speech: Samples, delay: int) -> None:
    moved = np.roll(noisy(speech, 20), delay)
    reference, decoded = align(speech, moved, longest_lag=960)
    assert len(reference) == len(decoded) == len(speech) - abs(delay)
    middle = slice(RATE, 2 * RATE)
    assert si_sdr_db(reference[middle], decoded[middle]) > 15


def test_music_is_not_scored_as_speech(speech: Samples) -> None:
    scores = score(speech, noisy(speech, 20), RATE, kind="music")
    assert scores.pesq_wb is None
    assert scores.estoi is None
    assert scores.zimtohrli > 1


def test_log_spectral_distance_of_a_gain_is_the_gain(speech: Samples) -> None:
    loud = np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    distance = log_spectral_distance_db(loud, (0.5 * loud).astype(np.float32))
    assert distance == pytest.approx(6.02, abs=0.05)


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        (np.zeros(RATE, np.float32), "silent"),
        (np.ones(100, np.float32), "at least 0.5 s"),
        (np.full(RATE, np.nan, np.float32), "not one channel of numbers"),
        (np.ones((2, RATE), np.float32), "not one channel of numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(reference: Samples, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        score(reference, np.ones(RATE, np.float32), RATE)
