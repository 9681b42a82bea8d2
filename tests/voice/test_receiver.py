from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import SimulatedCall, simulate
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.jitter import BEHIND_FRAMES
from encodec_rt.voice.receiver import Receiver
from encodec_rt.voice.statistics import CodecTimes, latency_ms
from tests.support.models import random_model, speech, tiny_config

SECONDS = 9


@pytest.fixture(scope="module")
def codes(codec: Codec, kbps: float) -> Codes:
    return codec.stream_encoder(kbps).push(speech(SECONDS * codec.config.sampling_rate).numpy())


def call(
    codec: Codec,
    kbps: float,
    codes: Codes,
    network: PathProfile,
    *,
    seed: int = 0,
    active: Sequence[bool] | None = None,
    redundancy: bool = True,
    **changes: Any,
) -> tuple[SimulatedCall, Receiver]:
    listener = Receiver(codec.stream_decoder(kbps), **changes)
    controller = RateController(
        codebooks=codes.shape[1],
        bits=codec.config.codebook_nbits,
        frame_rate_hz=codec.config.frame_rate,
        redundancy=redundancy,
    )
    channel = Channel(network, seed)
    heard = simulate(codes, channel, listener, controller=controller, active=active)
    return heard, listener


def longest_mute_ms(heard: SimulatedCall, hop_ms: float) -> float:
    """The longest run of hops that nothing but concealment filled."""
    longest = run = 0
    for kind in heard.kinds:
        run = run + 1 if kind == "lost" else 0
        longest = max(longest, run)
    return longest * hop_ms


def test_a_perfect_network_gives_exactly_the_stream_decoders_audio(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    heard, listener = call(codec, kbps, codes, PathProfile(delay_ms=20))
    wanted = codec.stream_decoder(kbps).push(codes)
    start = heard.kinds.index("frame") * codec.config.hop_length
    np.testing.assert_array_equal(heard.audio[start : start + len(wanted)], wanted)
    counts = listener.statistics
    assert (counts.packetsLost, counts.packetsDiscarded, counts.recoveredFrames) == (0, 0, 0)


def test_a_receiver_that_restarts_is_where_a_new_stream_begins_bit_for_bit(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    _, listener = call(codec, kbps, codes, PathProfile(delay_ms=20, loss=0.3))
    received = listener.statistics.packetsReceived
    listener.restart()
    controller = RateController(
        codebooks=codes.shape[1],
        bits=codec.config.codebook_nbits,
        frame_rate_hz=codec.config.frame_rate,
    )
    channel = Channel(PathProfile(delay_ms=20), 0)
    heard = simulate(codes[::-1], channel, listener, controller=controller)
    wanted = codec.stream_decoder(kbps).push(codes[::-1])
    start = heard.kinds.index("frame") * codec.config.hop_length
    np.testing.assert_array_equal(heard.audio[start : start + len(wanted)], wanted)
    assert listener.statistics.packetsReceived > received


def test_no_latency_is_negative_on_a_machine_that_lags_behind_its_clock(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    listener = Receiver(codec.stream_decoder(kbps))
    hop, hop_s = codec.config.hop_length, 1 / codec.config.frame_rate
    for number, frame in enumerate(codes[:100]):
        # The clock of the playout falls behind by more and more, as when each hop takes too long.
        now_s = 1.5 * number * hop_s
        payload = encode_packet(Packet(frame[None]), bits=codec.config.codebook_nbits)
        listener.receive(payload, sequence=number, timestamp=number * hop, ssrc=1, now_s=now_s)
        listener.render(listener.take(number * hop_s, clock_s=now_s))
    counts = listener.statistics
    assert counts.jitterBufferEmittedCount > 0
    assert counts.jitterBufferDelay >= 0
    terms = latency_ms(counts, CodecTimes(hop_s), frames_per_packet=1, round_trip_s=-0.02)
    assert min(terms.values()) >= 0


def test_bursty_loss_mutes_speech_for_no_longer_than_a_word_survives(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    network = PathProfile(delay_ms=40, jitter_ms=8, loss=0.1, burst=2)
    heard, listener = call(codec, kbps, codes, network, seed=2)
    bare, _ = call(codec, kbps, codes, network, seed=2, redundancy=False)
    counts = listener.statistics
    assert counts.recoveredFrames > 0.4 * counts.packetsLost
    assert heard.kinds.count("lost") < 0.6 * bare.kinds.count("lost")
    assert longest_mute_ms(heard, 10) <= longest_mute_ms(bare, 10)


def test_late_frames_repair_the_state(codec: Codec, kbps: float, codes: Codes) -> None:
    network = PathProfile(delay_ms=20, reorder=0.02, reorder_ms=45)
    _, listener = call(codec, kbps, codes, network, redundancy=False)
    _, without = call(codec, kbps, codes, network, redundancy=False, repairs=False)
    assert listener.statistics.repairedFrames > 0
    assert without.statistics.repairedFrames == 0


def test_silence_is_not_sent_and_not_counted_as_loss(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    active = [not 300 <= index < 650 for index in range(len(codes))]
    full, _ = call(codec, kbps, codes, PathProfile(delay_ms=20))
    heard, listener = call(codec, kbps, codes, PathProfile(delay_ms=20), active=active)
    counts = listener.statistics
    assert heard.wire_bytes < 0.7 * full.wire_bytes
    assert counts.silentFrames == pytest.approx(350, abs=3)
    assert counts.packetsLost == 0
    assert counts.concealmentEvents <= 1
    played = [kind for kind in heard.kinds if kind == "frame"]
    assert len(played) == pytest.approx(len(codes) - 350, abs=3)


def test_fast_and_slow_clocks_keep_the_delay(codec: Codec, kbps: float, codes: Codes) -> None:
    for ppm in (-500, 500):
        listener = Receiver(codec.stream_decoder(kbps))
        controller = RateController(codebooks=4, bits=4, frame_rate_hz=100)
        channel = Channel(PathProfile(delay_ms=30, jitter_ms=3), 0)
        heard = simulate(codes, channel, listener, controller=controller, drift_ppm=float(ppm))
        begin, end = heard.delays_ms[100:300], heard.delays_ms[-200:]
        assert np.median(end) == pytest.approx(np.median(begin), abs=20)


def receive(listener: Receiver, payload: bytes, index: int, hop: int) -> bool:
    return listener.receive(
        payload, sequence=index & 0xFFFF, timestamp=index * hop, ssrc=1, now_s=index * 0.01
    )


def test_the_standards_names_are_used_for_statistics(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    _, listener = call(codec, kbps, codes[:200], PathProfile(delay_ms=20, loss=0.1))
    report: Mapping[str, Any] = listener.statistics.as_dict()
    assert report["type"] == "inbound-rtp"
    for name in ("packetsReceived", "packetsLost", "concealedSamples", "jitterBufferDelay"):
        assert report[name] > 0
    assert set(report["encodecRt"]) == {"recoveredFrames", "repairedFrames", "silentFrames"}


def test_more_codebooks_than_agreed_or_codes_beyond_the_model_are_discarded(
    codec: Codec, kbps: float
) -> None:
    hop = codec.config.hop_length
    listener = Receiver(codec.stream_decoder(codec.config.target_bandwidths[0]))
    fine = encode_packet(Packet(np.zeros((1, 1), np.uint16)), bits=4)
    many = encode_packet(Packet(np.zeros((1, 4), np.uint16)), bits=4)
    assert receive(listener, fine, 0, hop)
    assert not receive(listener, many, 1, hop)
    assert listener.statistics.packetsDiscarded == 1


def fuzz(codec: Codec, count: int, seed: int) -> Receiver:
    """A call into which ``count`` hostile payloads fall, with a genuine one now and then."""
    rng = np.random.default_rng(seed)
    hop = codec.config.hop_length
    listener = Receiver(codec.stream_decoder(codec.config.target_bandwidths[-1]))
    good = encode_packet(Packet(np.ones((1, 4), np.uint16)), bits=4)
    for index in range(count):
        kind = rng.integers(4)
        if kind == 0:
            payload = rng.bytes(int(rng.integers(0, 80)))
        elif kind == 1:
            payload = good[: rng.integers(0, len(good) + 1)]
        else:
            changed = bytearray(good + rng.bytes(int(rng.integers(0, 3))))
            changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
            payload = bytes(changed)
        wild = rng.random() < 0.3
        listener.receive(
            payload,
            sequence=int(rng.integers(1 << 16)),
            timestamp=int(rng.integers(1 << 32)) if wild else index // 10 * hop,
            ssrc=int(rng.integers(3)),
            now_s=index * 1e-3,
        )
        if index % 10 == 0:
            receive(listener, good, index // 10, hop)
            listener.take(index * 1e-3)
    return listener


def test_many_hostile_payloads_leave_the_call_unharmed_and_memory_bounded(
    codec: Codec,
) -> None:
    listener = fuzz(codec, 100_000, seed=0)
    assert listener.statistics.packetsDiscarded > 50_000
    assert len(listener.buffer._frames) <= 2 / 0.01 + BEHIND_FRAMES + 8
    assert len(listener._late) <= 8
    assert np.isfinite(listener.play(20.0)).all()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_taken_or_discarded(payload: bytes) -> None:
    codec = _CODEC
    listener = Receiver(codec.stream_decoder(codec.config.target_bandwidths[-1]))
    taken = receive(listener, payload, 0, codec.config.hop_length)
    assert listener.statistics.packetsReceived == taken
    assert listener.statistics.packetsDiscarded == (not taken)


_CODEC = Codec(random_model(tiny_config()))
