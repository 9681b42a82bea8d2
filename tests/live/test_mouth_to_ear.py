from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from encodec_rt.errors import AudioDeviceError
from encodec_rt.live.mouth_to_ear import Probe
from encodec_rt.types import Audio

RATE = 24_000
BLOCK = 320


def measured(way: Callable[[Audio], Audio], rate: int = RATE) -> Probe:
    """A probe after its session, ``way`` being what the played sound is on its return."""
    probe = Probe(rate)
    silence = np.zeros(BLOCK, np.float32)
    played = []
    while not probe.done:
        played.append(probe.replace_output(silence, silence))
    probe = Probe(rate)
    for piece in np.split(way(np.concatenate(played)), len(played)):
        probe.replace_output(piece, piece)
    return probe


def later(sound: Audio, samples: int, gain: float = 1.0) -> Audio:
    return (gain * np.concatenate([np.zeros(samples), sound])[: len(sound)]).astype(np.float32)


@pytest.mark.parametrize("samples", [0, 700, 3333, 30_000])
def test_the_delay_is_found_to_the_sample(samples: int) -> None:
    delay = measured(lambda sound: later(sound, samples)).require()
    assert delay.median_ms == pytest.approx(samples * 1000 / RATE)
    assert (delay.agreeing, delay.chirps) == (10, 10)
    assert delay.lowest_ms == delay.highest_ms == delay.median_ms


def test_the_delay_is_found_under_noise_echo_and_a_wrong_sign() -> None:
    def room(sound: Audio) -> Audio:
        noise = np.random.default_rng(1).normal(0, 0.02, len(sound))
        return (later(sound, 2400, -0.3) + later(sound, 2900, 0.15) + noise).astype(np.float32)

    assert measured(room).require().median_ms == pytest.approx(100, abs=0.1)


def test_at_another_rate_the_delay_is_the_same_time() -> None:
    delay = measured(lambda sound: later(sound, 1600), rate=16_000).require()
    assert delay.median_ms == pytest.approx(100)


def test_chirps_that_come_at_different_times_are_reported_as_a_range() -> None:
    def wandering(sound: Audio) -> Audio:
        half = len(sound) // 2
        return np.concatenate([later(sound[:half], 2400), later(sound, 2448)[half:]])

    delay = measured(wandering).require()
    assert (delay.lowest_ms, delay.highest_ms) == pytest.approx((100, 102))


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_microphone_that_hears_silence_or_noise_gives_no_figure(gain: float) -> None:
    noise = np.random.default_rng(0)
    probe = measured(lambda sound: noise.normal(0, gain, len(sound)).astype(np.float32))
    assert probe.after_codec() is None
    with pytest.raises(AudioDeviceError, match="did not hear the chirps; turn up"):
        probe.require()
