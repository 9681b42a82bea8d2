"""Echo cancellation on a simulated room: what the speaker plays comes back to the microphone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.sound.processing import VoiceProcessor
from encodec_rt.types import Audio
from tests.support.models import SPEECH
from tests.support.tolerances import bound

RATE = 24_000
HOP = 320
LATENCY_MS = 60
NEAR_BEGINS_S = 4


@pytest.fixture(scope="module")
def far() -> Audio:
    """What the other side says, twice."""
    audio, _ = soundfile.read(SPEECH.with_name("speech_it.flac"), dtype="float32")
    return np.tile(audio, 2)[: 9 * RATE]


@pytest.fixture(scope="module")
def echo(far: Audio) -> Audio:
    """The speaker as the microphone hears it: 12 dB weaker, late, and with 50 ms of room."""
    pytest.importorskip("livekit.rtc")
    taps = round(0.05 * RATE)
    noise = np.random.default_rng(0).normal(size=taps)
    response = noise * np.exp(-6.9 * np.arange(taps) / taps)
    late = np.zeros(round(LATENCY_MS * RATE / 1000))
    heard = np.convolve(far, 0.25 * response / np.linalg.norm(response))
    return np.concatenate([late, heard])[: len(far)].astype(np.float32)


@pytest.fixture(scope="module")
def near(far: Audio) -> Audio:
    """What this side says after a while, at the same time as the other."""
    audio, _ = soundfile.read(SPEECH, dtype="float32")
    silence = np.zeros(NEAR_BEGINS_S * RATE, np.float32)
    return np.pad(np.concatenate([silence, audio]), (0, len(far)))[: len(far)]


def cleaned(played: Audio, captured: Audio) -> Audio:
    """``captured`` after the canceller, hop by hop as a call runs it."""
    voice = VoiceProcessor(RATE)
    pieces = []
    for start in range(0, len(captured), HOP):
        voice.played(played[start : start + HOP])
        pieces.append(voice.clean(captured[start : start + HOP], delay_ms=LATENCY_MS))
    return np.concatenate(pieces)


def level_db(audio: Audio) -> Audio:
    """Of each 20 ms."""
    levels: Audio = 10 * np.log10(np.mean(audio.reshape(-1, RATE // 50) ** 2, axis=1) + 1e-9)
    return levels


def test_an_echo_is_taken_out_within_two_seconds(far: Audio, echo: Audio) -> None:
    span = slice(2 * RATE, NEAR_BEGINS_S * RATE)
    heard = cleaned(far, echo[: span.stop])
    gone_db = 10 * np.log10(np.sum(echo[span] ** 2) / np.sum(heard[span] ** 2))
    print(f"echo return loss {gone_db:.1f} dB")
    assert gone_db > bound("echo return loss", "dB")


def test_a_voice_beside_an_echo_stays(far: Audio, echo: Audio, near: Audio) -> None:
    both, alone = cleaned(far, echo + near), cleaned(np.zeros_like(far), near)
    span = slice((NEAR_BEGINS_S + 1) * RATE, len(far))
    likeness = np.corrcoef(both[span], alone[span])[0, 1]
    wanted, found = level_db(alone[span]), level_db(both[span])
    lost_db = np.median((wanted - found)[wanted > -40])
    print(f"correlation {likeness:.3f}, {lost_db:.1f} dB lost")
    assert likeness > bound("double talk", "correlation")
    assert lost_db < bound("double talk", "dB")


@pytest.mark.parametrize(("settings", "held_ms"), [({}, 9.3), ({"noise": True}, 15.3)])
def test_what_the_filters_hold_back_is_found_at_the_start(
    settings: dict[str, bool], held_ms: float
) -> None:
    pytest.importorskip("livekit.rtc")
    assert VoiceProcessor(RATE, **settings).held_ms == pytest.approx(held_ms, abs=0.3)


def test_noise_suppression_lowers_a_steady_noise() -> None:
    pytest.importorskip("livekit.rtc")
    noise = np.random.default_rng(1).normal(0, 0.01, 3 * RATE).astype(np.float32)
    voice = VoiceProcessor(RATE, echo=False, noise=True)
    heard = voice.clean(noise)
    assert 20 * np.log10(heard[2 * RATE :].std() / noise.std()) < -6


def test_any_length_may_come_and_whole_blocks_leave(near: Audio) -> None:
    pytest.importorskip("livekit.rtc")
    said = near[NEAR_BEGINS_S * RATE :][: 2 * RATE]
    whole = VoiceProcessor(RATE, echo=False, gain=True).clean(said)
    voice = VoiceProcessor(RATE, echo=False, gain=True)
    cuts = np.sort(np.random.default_rng(2).integers(0, len(said), 50))
    pieces = [voice.clean(piece) for piece in np.split(said, cuts)]
    assert all(len(piece) % voice.block == 0 for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), whole)
    assert voice.waiting == 0


@pytest.mark.parametrize("rate_hz", [800, 11_025, 96_000])
def test_a_rate_that_the_library_does_not_take_is_refused(rate_hz: int) -> None:
    with pytest.raises(ConfigError, match="8000 to 48000 Hz"):
        VoiceProcessor(rate_hz)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit.rtc", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'encodec-rt\[aec\]'"):
        VoiceProcessor(RATE)
