"""Rooms and noise that training mixes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_rt.training.acoustics import (
    another_voice,
    at_snr,
    coloured_noise,
    reverberated,
    rms,
    room_response,
)
from encodec_rt.training.data import index_sources
from encodec_rt.training.sampler import MixConfig, Sampler
from encodec_rt.training.sources import Source

RATE = 24_000


def test_noise_is_mixed_at_the_ratio_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.standard_normal(RATE).astype(np.float32)
    for snr_db in (0.0, 10.0, 30.0):
        mixed = at_snr(audio, coloured_noise(RATE, rng, RATE), snr_db)
        assert 20 * np.log10(rms(audio) / rms(mixed - audio)) == pytest.approx(snr_db, abs=0.01)
    assert at_snr(audio, np.zeros(RATE, np.float32), 10.0) is audio


def test_noise_never_rises_with_frequency() -> None:
    for seed in range(5):
        noise = coloured_noise(8 * RATE, np.random.default_rng(seed), RATE)
        power = np.square(np.abs(np.fft.rfft(noise)))
        octaves = [power[8 * low : 16 * low].mean() for low in (200, 800, 3_200)]
        assert octaves[0] > 0.8 * octaves[1] > 0.6 * octaves[2]
        assert rms(noise) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("decay_s", [0.2, 0.6])
def test_a_room_decays_by_60_db_in_its_reverberation_time(decay_s: float) -> None:
    response = room_response(decay_s, np.random.default_rng(1), RATE).astype(np.float64)
    assert response[0] > 0.9
    # Schroeder's backward integral of the tail, between -5 and -25 dB.
    energy = np.cumsum(np.square(response[1:])[::-1])[::-1]
    level = 10 * np.log10(energy / energy[0] + 1e-12)
    start, end = (int(np.argmax(level < bound)) for bound in (-5, -25))
    assert 3 * (end - start) / RATE == pytest.approx(decay_s, rel=0.25)


def test_a_room_keeps_the_level_and_the_length() -> None:
    rng = np.random.default_rng(2)
    audio = 0.1 * rng.standard_normal(RATE).astype(np.float32)
    wet = reverberated(audio, 0.5, rng, RATE)
    assert wet.shape == audio.shape
    assert rms(wet) == pytest.approx(rms(audio), rel=1e-3)
    assert rms(wet - audio) > 0.1 * rms(audio)


def test_surroundings_are_drawn_for_speech_as_often_as_asked(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    tone += 0.01 * np.sin(2 * np.pi * 10_000 * np.arange(2 * RATE) / RATE)
    for number in range(4):
        soundfile.write(recordings / f"{number}.wav", tone, RATE)
    hiss = tmp_path / "hiss"
    hiss.mkdir()
    for number in range(4):
        noise = 0.1 * np.random.default_rng(number).standard_normal(2 * RATE)
        soundfile.write(hiss / f"{number}.wav", noise, RATE)
    pairs = [
        (Source("tone", "speech", "CC0", "nobody"), recordings),
        (Source("hiss", "noise", "CC0", "nobody"), hiss),
    ]
    sources = index_sources(pairs, tmp_path / "packed")

    def residual_db(**shares: float) -> list[float]:
        """How far below the tones each item's rest lies."""
        mix = MixConfig(two=0.0, three=0.0, noise_snr_db=(20.0, 20.0), **shares)  # type: ignore[arg-type]
        batch = Sampler(sources, tmp_path / "packed", mix, crop=4_800, seed=3).batch(0, 40)
        power = np.square(np.abs(np.fft.rfft(batch[:, 0].numpy() * np.hanning(4_800), axis=1)))
        tones = np.zeros(power.shape[1], bool)
        for hertz in (440, 10_000):
            tones[hertz // 5 - 4 : hertz // 5 + 5] = True
        return list(10 * np.log10(power[:, ~tones].sum(1) / power.sum(1) + 1e-12))

    assert max(residual_db()) < -45
    noisy = np.array(residual_db(noise_share=0.5))
    assert 10 <= int((noisy > -25).sum()) <= 30
    assert sorted(noisy)[-1] < -15
    assert min(residual_db(noise_share=1.0)) > -25


def test_another_voice_has_another_speed_pitch_and_level() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(2 * RATE) / RATE).astype(np.float32)
    for seed in range(8):
        heard = another_voice(tone, np.random.default_rng(seed), RATE)
        assert heard.dtype == np.float32
        speed = len(tone) / len(heard)
        assert 0.799 < speed < 1.251
        assert abs(speed - 1) > 0.005
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
        loudest = np.fft.rfftfreq(len(heard), 1 / RATE)[spectrum.argmax()]
        assert loudest == pytest.approx(200 * speed, abs=1.0)
        # What the corner lets through of the tilt is below 3 dB at this pitch.
        assert -15.5 < 20 * np.log10(np.abs(heard).max()) < 0.0
    assert not another_voice(np.zeros(RATE, np.float32), np.random.default_rng(0), RATE).any()
