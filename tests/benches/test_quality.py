"""The quality bench: how sure its means are, and what it scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from benches.bootstrap import interval, paired_difference
from benches.held_out import NOISE_SNR_DB, RATE, HeldOut, in_a_room, noisy
from benches.quality import differences, intervals, means, scores
from encodec_rt.quality import band_levels_db, si_sdr_db

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"


@pytest.fixture(scope="module")
def clip() -> HeldOut:
    audio, _ = soundfile.read(ASSETS / "speech_it.flac", frames=3 * RATE, dtype="float32")
    return HeldOut("a", "speech", False, 0.5 * audio)


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        low, high = interval(list(rng.normal(5.0, 2.0, size=28)))
        covered += low <= 5.0 <= high
    assert 50 <= covered <= 60


def test_pairing_finds_a_difference_that_the_clips_would_hide() -> None:
    rng = np.random.default_rng(4)
    clips = rng.normal(3.0, 1.0, size=28)
    ours, theirs = clips + 0.1 + rng.normal(0, 0.05, 28), clips
    mean, low, high = paired_difference(list(ours), list(theirs))
    assert low > 0.05
    assert mean == pytest.approx(0.1, abs=0.04)
    assert high < 0.15
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def test_noise_and_room_are_the_same_each_time_and_keep_the_length(clip: HeldOut) -> None:
    for change in (noisy, in_a_room):
        once, again = change(clip), change(clip)
        assert np.array_equal(once.audio, again.audio)
        assert once.audio.shape == clip.audio.shape
        assert np.abs(once.audio).max() <= 0.9501
    assert si_sdr_db(clip.audio, noisy(clip).audio) == pytest.approx(NOISE_SNR_DB, abs=1.0)


def test_a_dulled_clip_lacks_its_highs_and_nothing_else(clip: HeldOut) -> None:
    spectrum = np.fft.rfft(clip.audio)
    frequency = np.fft.rfftfreq(len(clip.audio), 1 / RATE)
    dull = np.fft.irfft(np.where(frequency > 4_000, spectrum / 10, spectrum), len(clip.audio))
    levels = band_levels_db(clip.audio, dull.astype(np.float32), RATE)
    assert levels["band_1_2_khz_db"] == pytest.approx(0, abs=0.01)
    assert levels["band_5_8_khz_db"] == pytest.approx(-20, abs=0.1)
    # The recording ends at 8 kHz.
    assert levels["band_8_11_khz_db"] is None


def test_a_score_that_a_clip_lacks_is_left_out_of_means_and_differences(clip: HeldOut) -> None:
    rows = [scores(clip, 0.9 * clip.audio, visqol=False) for _ in range(2)]
    found = means(rows)
    assert found["band_1_2_khz_db"] == pytest.approx(20 * np.log10(0.9), abs=0.01)
    assert "band_8_11_khz_db" not in found
    assert "visqol" not in intervals(rows)
    assert differences(rows, rows)["estoi"] == [0.0, 0.0, 0.0]
