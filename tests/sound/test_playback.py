from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound.playback import play_blocks
from encodec_rt.types import Audio
from tests.support.virtual_audio import SPEAKER, VirtualCard, VirtualSystem, device, install


def tone(samples: int, rate_hz: int = 24_000) -> Audio:
    return (0.4 * np.sin(2 * np.pi * 300 * np.arange(samples) / rate_hz)).astype(np.float32)


def blocks_of(audio: Audio, size: int = 5000) -> list[Audio]:
    return [audio[None, start : start + size] for start in range(0, len(audio), size)]


def played(card: VirtualCard) -> NDArray[np.int16]:
    heard = np.concatenate(card.played)
    sounding = np.flatnonzero(heard)
    return heard[sounding[0] : sounding[-1] + 1]


def test_every_sample_is_played_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    card = install(monkeypatch, VirtualCard())
    audio = tone(60_001)
    assert play_blocks(VirtualSystem(card), blocks_of(audio), 24_000) == 60_001
    wanted = np.rint(audio * 32768).astype(np.int16)
    heard = played(card)
    assert np.array_equal(heard, wanted[1 : 1 + len(heard)])
    assert len(heard) >= 60_000 - 1


def test_two_channels_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = install(monkeypatch, VirtualCard())
    audio = tone(9_600)
    pair = np.stack([audio, -audio / 2])
    assert play_blocks(VirtualSystem(card), [pair], 24_000) == 9_600
    assert np.abs(played(card)).max() == pytest.approx(0.1 * 32768, rel=0.02)


def test_a_speaker_of_another_rate_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = device("Desk Speaker", inputs=0, outputs=1, rates=(48_000,))
    card = install(monkeypatch, VirtualCard(speaker))
    play_blocks(VirtualSystem(card), blocks_of(tone(24_000)), 24_000)
    assert abs(len(played(card)) - 48_000) < 200


def test_a_speaker_that_goes_away_ends_it_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    card = install(monkeypatch, VirtualCard())

    def blocks() -> Iterator[Audio]:
        yield from blocks_of(tone(24_000))
        card.unplug(SPEAKER)
        yield from blocks_of(tone(24_000))

    with pytest.raises(AudioDeviceError, match="was lost"):
        play_blocks(VirtualSystem(card), blocks(), 24_000)


def test_without_a_speaker_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    card = install(monkeypatch, VirtualCard(device("Desk Microphone")))
    with pytest.raises(AudioDeviceError):
        play_blocks(VirtualSystem(card), blocks_of(tone(100)), 24_000)
