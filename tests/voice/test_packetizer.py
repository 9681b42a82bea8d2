from __future__ import annotations

from collections.abc import Callable

import numpy as np

from encodec_rt.bitstream.packet import parse_packet
from encodec_rt.voice.bitrate import PacketPlan
from encodec_rt.voice.packetizer import REFRESH_FRAMES, Outgoing, Packetizer

HOP = 320


def codes(count: int, codebooks: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, (count, codebooks)).astype(np.uint16)


def push_all(
    frames: np.ndarray, plan: PacketPlan, active: Callable[[int], bool] = lambda index: True
) -> list[list[Outgoing]]:
    packetizer = Packetizer(hop=HOP, bits=10)
    return [
        packetizer.push(frame, plan, active=active(index)) for index, frame in enumerate(frames)
    ]


def test_timestamps_count_samples_and_the_first_packet_is_marked() -> None:
    sent = [packet for out in push_all(codes(9), PacketPlan(3, 8)) for packet in out]
    assert [packet.timestamp for packet in sent] == [0, 3 * HOP, 6 * HOP]
    assert [packet.marker for packet in sent] == [True, False, False]


def test_a_packet_holds_its_frames_cut_to_the_plans_codebooks() -> None:
    frames = codes(4)
    (first,), (second,) = [out for out in push_all(frames, PacketPlan(2, 4)) if out]
    np.testing.assert_array_equal(parse_packet(first.payload, bits=10).codes, frames[:2, :4])
    np.testing.assert_array_equal(parse_packet(second.payload, bits=10).codes, frames[2:, :4])


def test_redundancy_repeats_the_frames_before_the_packet() -> None:
    frames = codes(6)
    sent = [out[0] for out in push_all(frames, PacketPlan(1, 8, 3, 2))]
    assert parse_packet(sent[0].payload, bits=10).redundancy is None
    extra = parse_packet(sent[5].payload, bits=10).redundancy
    assert extra is not None
    assert extra.back == 3
    np.testing.assert_array_equal(extra.codes, frames[2:5, :2])


def test_silence_is_announced_once_and_refreshed_and_speech_after_it_is_marked() -> None:
    count = 2 * REFRESH_FRAMES + 5
    sent = push_all(codes(count), PacketPlan(1, 8), lambda index: not 5 <= index < count - 3)
    flat = [(index, packet) for index, out in enumerate(sent) for packet in out]
    empty = [index for index, packet in flat if not packet.payload]
    assert empty == [5, 5 + REFRESH_FRAMES]
    assert [index for index, packet in flat if packet.marker] == [0, count - 3]
    assert all(packet.timestamp == index * HOP for index, packet in flat)


def test_frames_waiting_for_their_packet_go_out_when_silence_begins() -> None:
    frames = codes(8)
    sent = push_all(frames, PacketPlan(3, 8), lambda index: index < 5)
    before, announcement = sent[5]
    assert (before.timestamp, announcement.timestamp) == (3 * HOP, 5 * HOP)
    np.testing.assert_array_equal(parse_packet(before.payload, bits=10).codes, frames[3:5])


def test_redundancy_never_reaches_back_over_silence() -> None:
    sent = push_all(codes(30), PacketPlan(1, 8, 2, 2), lambda index: not 5 <= index < 20)
    first = parse_packet(sent[20][0].payload, bits=10)
    assert first.redundancy is None
    again = parse_packet(sent[21][0].payload, bits=10).redundancy
    assert again is not None
    assert len(again.codes) == 1


def test_flush_sends_the_packet_that_is_not_full() -> None:
    packetizer = Packetizer(hop=HOP, bits=10)
    assert packetizer.push(codes(1)[0], PacketPlan(3, 8)) == []
    assert [packet.timestamp for packet in packetizer.flush(PacketPlan(3, 8))] == [0]
    assert packetizer.flush(PacketPlan(3, 8)) == []
