from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from encodec_rt.errors import ConfigError
from encodec_rt.netsim.impairment import Channel, PathProfile


def arrivals(
    network: PathProfile, count: int = 20_000, seed: int = 0, size: int = 100
) -> list[list[float]]:
    channel = Channel(network, seed)
    return [channel.send(index * 0.01, size) for index in range(count)]


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    network = PathProfile(delay_ms=10, jitter_ms=5, loss=0.1, burst=3, duplicate=0.1)
    assert arrivals(network, 500) == arrivals(network, 500)
    assert arrivals(network, 500) != arrivals(network, 500, seed=1)


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_loss_has_the_mean_and_the_burst_length_asked_for(burst: float) -> None:
    lost = np.array([not times for times in arrivals(PathProfile(loss=0.1, burst=burst))])
    assert lost.mean() == pytest.approx(0.1, abs=0.015)
    runs = (np.diff(np.concatenate([[0], lost.astype(int)])) == 1).sum()
    # Independent losses come in runs of 1 / (1 - loss).
    expected = burst if burst > 1 else 1 / 0.9
    assert lost.sum() / runs == pytest.approx(expected, rel=0.1)


def test_duplicates_reordering_and_jitter_have_the_shares_asked_for() -> None:
    times = arrivals(PathProfile(delay_ms=20, duplicate=0.05, reorder=0.1, reorder_ms=30))
    assert np.mean([len(copies) == 2 for copies in times]) == pytest.approx(0.05, abs=0.01)
    delays = np.array([copies[0] - index * 0.01 for index, copies in enumerate(times)])
    assert np.mean(delays > 0.04) == pytest.approx(0.1, abs=0.01)
    jitter = arrivals(PathProfile(jitter_ms=8))
    mean_ms = np.mean([copies[0] - index * 0.01 for index, copies in enumerate(jitter)]) * 1e3
    assert mean_ms == pytest.approx(8, rel=0.05)


def test_a_spike_delivers_what_it_held_back_in_one_burst() -> None:
    times = [copies[0] for copies in arrivals(PathProfile(spike_every_s=2, spike_ms=100), 1000)]
    assert times[199] == pytest.approx(1.99)
    np.testing.assert_allclose(times[200:210], 2.1, atol=1e-9)
    assert times[211] == pytest.approx(2.11)


def test_an_outage_loses_everything_and_a_step_stays() -> None:
    network = PathProfile(outages_s=((1, 2),), step_at_s=3, step_ms=50)
    times = arrivals(network, 500)
    assert all(times[:100])
    assert not any(times[100:200])
    assert times[299][0] == pytest.approx(2.99)
    assert times[400][0] == pytest.approx(4.05)


def test_a_bottleneck_queues_what_exceeds_its_rate_and_drops_beyond_its_queue() -> None:
    # 100 bytes each 10 ms are 80 kbps.
    network = PathProfile(rate_kbps=40, rate_span_s=(1, 4), queue_ms=500)
    times = arrivals(network, 600)
    assert times[99][0] == pytest.approx(0.99)
    assert times[109][0] - 1.09 == pytest.approx(0.11, abs=0.021)
    assert max(t[0] - i * 0.01 for i, t in enumerate(times) if t) < 0.55
    received = sum(bool(t) for t in times[200:400])
    assert received == pytest.approx(100, abs=5)
    assert times[450][0] == pytest.approx(4.5)


@pytest.mark.parametrize("changes", [{"loss": 1.0}, {"duplicate": -0.1}, {"burst": 0.5}])
def test_impossible_networks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PathProfile(**changes)
