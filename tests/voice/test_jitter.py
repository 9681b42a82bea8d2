from __future__ import annotations

import ctypes.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.link import traces
from benches.link.jitter import NETWORKS, Point, Speex, curve, point
from benches.link.traces import HOP, HOP_S, SSRC, Sent
from encodec_rt.bitstream.packet import Packet, Redundancy
from encodec_rt.errors import ConfigError
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.voice.delay import TransitHistogram
from encodec_rt.voice.jitter import BEHIND_FRAMES, JitterBuffer, Receipt

# What one per cent of late packets is worth: NetEq's exchange rate, by which buffers are compared.
LATE_MS_PER_PER_CENT = 20.0
RESUME_S = 0.2
# A seventh of the hop by which both move.
SLACK_MS = 2.0

Compared = tuple[list[list[Sent]], Point]


def put(
    buffer: JitterBuffer, index: int, now_s: float, codebooks: int = 2, **changes: Any
) -> Receipt:
    values = {"sequence": index & 0xFFFF, "timestamp": index * HOP & 0xFFFFFFFF, "ssrc": SSRC}
    packet = changes.pop("packet", None) or traces.frame(index, codebooks)
    return buffer.put(packet, now_s=now_s, **(values | changes))


def longest_gap_s(outcome: traces.Outcome, begin_s: float, end_s: float) -> float:
    """The longest time in which no frame was played."""
    times = [at for at in sorted(outcome.played_s.values()) if begin_s <= at <= end_s]
    return float(max(np.diff([begin_s, *times, end_s])))


def test_a_perfect_network_plays_every_frame_in_order_without_concealment() -> None:
    packets = traces.trace(PathProfile(delay_ms=5), 10)
    outcome = traces.play(packets)
    assert list(outcome.played_s) == sorted(outcome.played_s)
    assert outcome.late_share(packets) == 0
    during = {slot.kind for at, slot in outcome.slots if at < packets[-1].arrival_s}
    assert during == {"idle", "frame"}
    assert outcome.delays_ms(packets).max() < 5 + 10 + 1.5 * HOP_S * 1e3


def test_overtaken_packets_are_played_in_order() -> None:
    packets = traces.trace(PathProfile(delay_ms=20, jitter_ms=8, reorder=0.1, reorder_ms=25), 30)
    assert [p.index for p in packets] != sorted(p.index for p in packets)
    outcome = traces.play(packets)
    assert list(outcome.played_s) == sorted(outcome.played_s)


@pytest.mark.parametrize("order", [(2, 8), (8, 2)])
def test_of_two_copies_the_one_with_more_codebooks_is_played(order: tuple[int, int]) -> None:
    buffer = JitterBuffer()
    for codebooks in order:
        put(buffer, 0, 0.0, codebooks)
    slots = [buffer.get(step * HOP_S) for step in range(4)]
    played = [slot.codes for slot in slots if slot.codes is not None]
    assert [codes.shape[1] for codes in played] == [8]


def test_a_lost_frame_is_recovered_from_the_redundancy_of_a_later_packet() -> None:
    buffer = JitterBuffer(floor_ms=40)
    copy = np.array([[5, 6]], np.uint16)
    for index in (0, 1, 3, 4):
        redundancy = Redundancy(1, copy) if index == 3 else None
        packet = Packet(traces.frame(index, 8).codes, redundancy)
        put(buffer, index, index * HOP_S, packet=packet)
    slots = [buffer.get(0.04 + step * HOP_S) for step in range(6)]
    played = {slot.index: slot for slot in slots if slot.codes is not None}
    assert sorted(played) == [0, 1, 2, 3, 4]
    assert [played[i].kind for i in range(5)] == ["frame", "frame", "copy", "frame", "frame"]
    np.testing.assert_array_equal(played[2].codes, copy)


def test_sequence_number_and_timestamp_wrap_unnoticed() -> None:
    sent = traces.trace(PathProfile(delay_ms=20, jitter_ms=5), 20)
    plain = traces.play(sent)
    shifted = [Sent(p.arrival_s, p.sent_s, p.index, p.index + 65_000 & 0xFFFF) for p in sent]
    wrapped = traces.play(shifted, first_timestamp=(1 << 32) - 500 * HOP)
    assert wrapped.played_s == plain.played_s


def test_after_a_delay_step_audio_resumes_soon_and_nothing_later_is_lost() -> None:
    network = PathProfile(delay_ms=30, jitter_ms=2, step_at_s=10, step_ms=60)
    packets = traces.trace(network, 20, seed=3)
    outcome = traces.play(packets)
    assert longest_gap_s(outcome, 9, 20) < RESUME_S
    after = [p for p in packets if p.sent_s > 10 + RESUME_S]
    assert outcome.late_share(after) < 0.01


def test_spikes_are_not_paid_for_with_delay() -> None:
    packets = traces.trace(PathProfile(delay_ms=40, jitter_ms=2, spike_every_s=5), 40)
    outcome = traces.play(packets)
    assert np.median(outcome.delays_ms(packets)) < 40 + 30
    assert longest_gap_s(outcome, 1, 39) < RESUME_S


@pytest.mark.parametrize("changes", [{"reorder": 0.05}, {"duplicate": 0.2}])
def test_neither_reordering_nor_duplicates_interrupt(changes: dict[str, Any]) -> None:
    network = PathProfile(delay_ms=40, jitter_ms=3, reorder_ms=30, **changes)
    packets = traces.trace(network, 30, seed=1)
    outcome = traces.play(packets)
    assert longest_gap_s(outcome, 1, 29.9) < 4 * HOP_S
    settled = [p for p in packets if p.sent_s > 5]
    assert outcome.late_share(settled) < 0.01
    reordered_ms = 30 if "reorder" in changes else 0
    assert np.median(outcome.delays_ms(settled)) < 40 + reordered_ms + 10 + 1.5 * HOP_S * 1e3


def test_after_an_outage_audio_resumes_at_once_and_at_the_same_delay() -> None:
    packets = traces.trace(PathProfile(delay_ms=40, jitter_ms=3, outages_s=((10, 15),)), 30)
    outcome = traces.play(packets)
    first_back = min(p.arrival_s for p in packets if p.sent_s >= 15)
    assert longest_gap_s(outcome, first_back, 29) < RESUME_S
    delay_ms = {i: (at - i * HOP_S) * 1e3 for i, at in outcome.played_s.items()}
    before = [ms for i, ms in delay_ms.items() if 5 < i * HOP_S < 10]
    after = [ms for i, ms in delay_ms.items() if i * HOP_S > 20]
    assert np.median(after) == pytest.approx(np.median(before), abs=HOP_S * 1e3 + 1)


@pytest.mark.parametrize("ppm", [-400, 400])
def test_clock_drift_neither_grows_the_delay_nor_starves_the_playout(ppm: int) -> None:
    packets = traces.trace(PathProfile(delay_ms=40, jitter_ms=4), 120, ppm=ppm)
    outcome = traces.play(packets, quiet=lambda now_s: now_s % 4 < 1.5)
    assert outcome.late_share(packets) < 0.01
    parts = [p for p in packets if 5 < p.sent_s < 20], [p for p in packets if p.sent_s > 105]
    begin_ms, end_ms = (np.median(outcome.delays_ms(part)) for part in parts)
    # 400 ppm of 100 s are 40 ms; without following, the delay would have moved by as much.
    assert end_ms == pytest.approx(begin_ms, abs=1.5 * HOP_S * 1e3)


def test_delay_shrinks_in_quiet_before_it_cuts_speech() -> None:
    network = PathProfile(delay_ms=90, jitter_ms=2, step_at_s=5, step_ms=-60)
    packets = traces.trace(network, 40)
    quiet = traces.play(packets, quiet=lambda now_s: now_s % 3 < 1)
    skipped = [at for at, slot in quiet.slots if slot.skipped]
    assert len(skipped) >= 3
    assert all(at % 3 < 1 + 1e-6 for at in skipped)
    end = [p for p in packets if p.sent_s > 35]
    assert quiet.delays_ms(end).max() < 30 + 40


def test_delay_shrinks_in_endless_speech_too() -> None:
    network = PathProfile(delay_ms=90, jitter_ms=2, step_at_s=5, step_ms=-60)
    packets = traces.trace(network, 60)
    outcome = traces.play(packets)
    end = [p for p in packets if p.sent_s > 55]
    assert outcome.delays_ms(end).max() < 30 + 40


def test_delay_stays_between_floor_and_ceiling() -> None:
    packets = traces.trace(PathProfile(delay_ms=40, jitter_ms=60), 30)
    buffer = JitterBuffer(floor_ms=10, ceiling_ms=80)
    outcome = traces.play(packets, buffer)
    end = [p for p in packets if p.sent_s > 15]
    assert outcome.delays_ms(end).max() < 40 + 80 + 2 * HOP_S * 1e3
    steady = traces.play(traces.trace(PathProfile(), 10), JitterBuffer(floor_ms=50))
    assert steady.delays_ms(traces.trace(PathProfile(), 10)).min() > 50 - HOP_S * 1e3 / 2


def test_late_frames_are_told_once() -> None:
    buffer = JitterBuffer()
    for index in (0, 1, 3):
        put(buffer, index, index * HOP_S)
    for step in range(8):
        buffer.get(0.01 + step * HOP_S)
    receipt = put(buffer, 2, 8 * HOP_S)
    assert [number for number, _ in receipt.late] == [2]
    assert put(buffer, 2, 8 * HOP_S).late == []


def test_a_new_source_is_believed_from_its_second_packet_on() -> None:
    buffer = JitterBuffer()
    put(buffer, 0, 0.0)
    first = put(buffer, 900, 0.02, ssrc=99)
    stray = put(buffer, 1, 0.02)
    assert (first.accepted, stray.accepted) == (False, True)
    assert not put(buffer, 901, 0.03, ssrc=99).accepted
    second = put(buffer, 902, 0.04, ssrc=99)
    assert (second.accepted, second.restarted) == (True, True)


def test_one_wild_timestamp_changes_nothing_and_two_in_a_row_restart() -> None:
    buffer = JitterBuffer()
    put(buffer, 0, 0.0)
    assert not put(buffer, 1, 0.0, timestamp=1 << 31).accepted
    assert put(buffer, 2, 0.02).accepted
    assert not put(buffer, 3, 0.03, timestamp=1 << 30).accepted
    assert put(buffer, 4, 0.04, timestamp=(1 << 30) + HOP).restarted


def test_a_timestamp_between_frames_is_refused() -> None:
    buffer = JitterBuffer()
    put(buffer, 0, 0.0)
    assert not put(buffer, 1, 0.0, timestamp=HOP + 1).accepted


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF),
            st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 400).map(lambda n: n * HOP)),
            st.integers(0, 2),
            st.floats(0, 0.5),
            st.booleans(),
        ),
        max_size=300,
    )
)
def test_whatever_comes_memory_is_bounded_and_a_slot_is_given(
    steps: list[tuple[int, int, int, float, bool]],
) -> None:
    buffer = JitterBuffer()
    now_s = 0.0
    for sequence, timestamp, ssrc, pause_s, quiet in steps:
        now_s += pause_s
        codes = np.zeros((4, 2), np.uint16)
        packet = Packet(codes, Redundancy(16, codes))
        buffer.put(packet, sequence=sequence, timestamp=timestamp, ssrc=ssrc, now_s=now_s)
        slot = buffer.get(now_s, quiet=quiet)
        assert (slot.codes is None) == (slot.kind in ("idle", "lost", "hold"))
        assert len(buffer._frames) <= 2 / HOP_S + BEHIND_FRAMES + 8


@pytest.mark.parametrize("jump_s", [-100.0, -1.201, -0.7, 0.7, 1.3, 100.0])
def test_a_transit_far_from_all_before_moves_the_histogram_and_loses_no_weight(
    jump_s: float,
) -> None:
    transits = TransitHistogram(late_cost_ms=20)
    for _ in range(500):
        transits.add(0.05)
    for _ in range(2000):
        transits.add(0.05 + jump_s)
    assert transits.quantile(0.5) == pytest.approx(0.05 + jump_s, abs=0.005)
    assert transits.quantile(1.0) < max(0.05, 0.05 + jump_s) + 1.3


def test_the_drift_of_an_hour_neither_grows_the_delay_nor_the_memory() -> None:
    # 300 ppm for ten minutes, which is 50 ppm for an hour.
    network = PathProfile(delay_ms=40, jitter_ms=8, loss=0.02, spike_every_s=20)
    packets = traces.trace(network, 600, ppm=300)
    buffer = JitterBuffer()
    outcome = traces.play(packets, buffer, quiet=lambda now_s: now_s % 4 < 1.5)
    first = [p for p in packets if 30 < p.sent_s < 150]
    last = [p for p in packets if p.sent_s > 480]
    medians = [np.median(outcome.delays_ms(part)) for part in (first, last)]
    assert medians[1] == pytest.approx(medians[0], abs=1.5 * HOP_S * 1e3)
    assert len(buffer._frames) < 60


@pytest.mark.parametrize("changes", [{"floor_ms": -1}, {"floor_ms": 50, "ceiling_ms": 40}])
def test_impossible_bounds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="floor_ms"):
        JitterBuffer(**changes)


@pytest.fixture(scope="module")
def speex() -> Speex:
    library = ctypes.util.find_library("speexdsp")
    if library is None:
        pytest.skip("libspeexdsp is not installed (apt-get install libspeexdsp1)")
    return Speex(library)


@pytest.fixture(scope="module", params=NETWORKS)
def compared(request: pytest.FixtureRequest, speex: Speex) -> Compared:
    """Traces of one network, and what libspeexdsp makes of them."""
    packets = [traces.trace(NETWORKS[request.param], 45, seed=seed) for seed in (1, 2)]
    return packets, point([speex.play(each) for each in packets], packets)


def test_late_loss_and_delay_together_cost_no_more_than_those_of_libspeexdsp(
    compared: Compared,
) -> None:
    packets, theirs = compared
    ours = point([traces.play(each) for each in packets], packets)
    costs_ms = [each.mean_ms + LATE_MS_PER_PER_CENT * each.late_percent for each in (ours, theirs)]
    assert costs_ms[0] <= costs_ms[1]
    # Both move in whole hops, and the best delay may lie between two of them.
    assert ours.median_ms <= theirs.median_ms + HOP_S * 1e3 + 1


def test_at_the_same_delay_no_more_comes_late_than_with_libspeexdsp(
    compared: Compared,
) -> None:
    packets, theirs = compared
    ours = curve(packets, (4.0, 9.0, 30.0))
    delays_ms, late = zip(*((each.mean_ms, each.late_percent) for each in ours), strict=True)
    assert np.interp(theirs.mean_ms + SLACK_MS, delays_ms, late) <= theirs.late_percent
