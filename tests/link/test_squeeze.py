"""The rate of a whole call on a virtual clock, driven by aiortc's own estimator."""

from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.link.bandwidth import PathEstimator
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import SimulatedCall, simulate
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.receiver import HopPlan, Receiver
from tests.support.models import random_model, tiny_config

FRAME_RATE_HZ = 75
KBPS = 6.01


class Deaf(Receiver):
    """Decodes nothing, as only packets matter here."""

    def render(self, planned: HopPlan) -> Audio:
        return np.zeros(self.config.hop_length, np.float32)


@pytest.fixture(scope="module")
def codec() -> Codec:
    """A tiny model whose codes weigh as much as those of the real one."""
    config = tiny_config(sampling_rate=600, codebook_size=1024, target_bandwidths=(0.75, 3.0, KBPS))
    assert config.frame_rate == FRAME_RATE_HZ
    return Codec(random_model(config))


def call(
    codec: Codec, network: PathProfile, seconds: int, *, talkative: bool = True
) -> SimulatedCall:
    frames = seconds * FRAME_RATE_HZ
    codes = np.random.default_rng(0).integers(0, 1024, (frames, 8)).astype(np.uint16)
    return simulate(
        codes,
        Channel(network, 0),
        Deaf(codec.stream_decoder(KBPS)),
        controller=RateController(codebooks=8),
        active=[talkative or index % 300 < 200 for index in range(frames)],
        estimator=PathEstimator(),
    )


def test_a_bottleneck_queues_little_and_the_full_rate_returns_after_it(codec: Codec) -> None:
    network = PathProfile(delay_ms=20, jitter_ms=3, rate_kbps=40, rate_span_s=(12, 28))
    heard = call(codec, network, 40)
    at_s, transits_ms = np.array(heard.transits_ms).T
    squeezed = transits_ms[(at_s >= 16) & (at_s < 28)]
    assert np.median(squeezed) < 60
    assert {plan.frames for at, plan in heard.plans if 12 < at < 28} >= {2, 3}
    full = heard.plans[0][1]
    assert (full.frames, full.codebooks) == (1, 8)
    assert heard.plans[-1][1] == full
    assert heard.plans[-1][0] < 28 + 10


@pytest.mark.parametrize("talkative", [True, False])
def test_jitter_without_a_queue_costs_no_bits(codec: Codec, talkative: bool) -> None:
    network = PathProfile(delay_ms=40, jitter_ms=8)
    heard = call(codec, network, 30, talkative=talkative)
    assert [(plan.frames, plan.codebooks) for _, plan in heard.plans] == [(1, 8)]
