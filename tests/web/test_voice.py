"""Both directions of a call in JavaScript against the Python that they repeat, by golden traces."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encodec_rt.bitstream.packet import Packet, Redundancy, encode_packet
from encodec_rt.config import EncodecConfig
from encodec_rt.link.rtp_session import RtpSession
from encodec_rt.link.sdp import Format
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.receiver import Receiver
from encodec_rt.voice.sender import Sender
from tests.support.models import snr_db, speech
from tests.support.served import model as served_model

WASM = Path(__file__).parents[2] / "encodec_rt" / "web" / "codec" / "codec.wasm"
HOP, RATE, BITS = 320, 24_000, 10

REPORTS: dict[str, list[tuple[float, float | None]]] = {
    "nothing lost": [(0.0, 0.05)] * 12,
    "loss that comes and goes": [(0.0, 0.05), (0.03, 0.05), (0.12, 0.05), *[(0.0, 0.05)] * 9],
    "a queue that grows and drains": [*[(0.0, 0.05)] * 2, *[(0.0, 0.9)] * 4, *[(0.0, 0.06)] * 30],
    "both": [(0.1, None), (0.07, 0.1), (0.07, 0.6), (0.2, 0.8), *[(0.01, 0.12)] * 8],
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("books", [1, 8, 16])
def test_the_sender_makes_the_packets_that_pythons_makes(name: str, books: int, node: Any) -> None:
    random = np.random.default_rng(books)
    wanted: list[Any] = []
    made: list[list[Any]] = []

    def send(packet: Outgoing, now_s: float) -> None:
        made.append([packet.payload.hex(), packet.timestamp, packet.marker])

    controller = RateController(codebooks=books, bits=BITS, frame_rate_hz=RATE / HOP)
    sender = Sender(EncodecConfig(), controller, send)
    events: list[list[Any]] = []
    for second, report in enumerate(REPORTS[name]):
        for frame in range(75):
            now_s = second + frame / 75
            codes = random.integers(0, 1024, 16).astype(np.uint16)
            active = not 40 < (second * 75 + frame) % 200 < 90
            events.append(["frame", now_s, codes.tolist(), active])
            made.clear()
            sender.push(codes, now_s, active=active)
            wanted.append(list(made))
        events.append(["report", second + 1.0, *report])
        controller.on_report(*report, second + 1.0)
        wanted.append(None)
    given = node("send", books=books, hop=HOP, bits=BITS, rateHz=RATE, events=events)
    assert given == wanted
    sizes = {len(packet[0]) for packets in wanted if packets for packet in packets}
    # Silence, and packets of more than one make; the plans do differ.
    assert len(sizes) > 2


@pytest.mark.parametrize("seed", range(3))
def test_reports_are_written_and_read_as_python_does(seed: int, node: Any) -> None:
    random = np.random.default_rng(seed)
    ours, theirs = 0xDEADBEEF, 7 + seed
    one = RtpSession(RATE, ssrc=ours)
    other = RtpSession(RATE, ssrc=theirs, sequence=65_400, timestamp=(1 << 32) - 90 * HOP)
    events: list[list[Any]] = []
    wanted: list[Any] = []

    def note(event: list[Any], result: Any = None) -> None:
        events.append(event)
        wanted.append(result)

    for index in range(600):
        # An origin of which the seconds of NTP wrap in 16 bits while the call lasts.
        now_s = 65_533.0 + index * HOP / RATE
        if index % 300 < 220:
            message = one.write(Outgoing(bytes(index % 40), index * HOP, marker=index == 0))
            note(["sent", now_s, message.hex()])
            if random.random() > 0.1:
                other.read(message, now_s + 0.04)
        message = other.write(Outgoing(b"payload", index * HOP, marker=False))
        if random.random() > 0.2:
            at_s = now_s + float(random.exponential(0.01))
            one.read(message, at_s)
            note(["packet", at_s, message.hex()])
        if index % 75 == 74:
            written = one.write_report(now_s)
            note(["write", now_s], written.hex())
            other.read(written, now_s + 0.05)
            answer = other.write_report(now_s + 0.06)
            one.read(answer, now_s + 0.11)
            report = one.report
            assert report is not None
            latest = {
                "fractionLost": report.fraction_lost,
                "packetsLost": report.packets_lost,
                "roundTripS": report.round_trip_s,
            }
            note(["read", now_s + 0.11, answer.hex()], latest)
    given = node("report", rateHz=RATE, ssrc=ours, events=events)
    assert given == wanted
    assert any(result["fractionLost"] > 0 for result in wanted if isinstance(result, dict))


def test_a_hundred_thousand_hostile_reports_raise_nothing_else(node: Any) -> None:
    one, other = RtpSession(RATE, ssrc=1), RtpSession(RATE, ssrc=2)
    one.read(other.write(Outgoing(b"x", 0, marker=False)), 0.0)
    one.read(other.write_report(0.0), 0.0)
    receiving = one.write_report(0.5)
    one.write(Outgoing(b"x", 0, marker=False))
    seeds = [receiving.hex(), one.write_report(1.0).hex()]
    result = node("hostile_reports", count=100_000, seeds=seeds, ssrc=2)
    assert result["count"] == 100_000
    assert 1000 < result["taken"] < 60_000
    assert result["roundTripS"] is None or 0 <= result["roundTripS"] <= 60
    assert result["written"] in (8, 32)


class Congruent:
    """The page's random numbers in place of numpy's."""

    def __init__(self) -> None:
        self._state = 1

    def integers(self, below: int) -> int:
        self._state = (self._state * 1664525 + 1013904223) & 0xFFFFFFFF
        return self._state % below


@cache
def codec() -> Codec:
    return Codec(EncodecModel.from_pretrained("default"))


NETWORKS: dict[str, dict[str, Any]] = {
    "loss": {"lost": 0.2},
    "late frames": {"late": 70, "copies": 0},
    "everything": {"lost": 0.03, "burst": 0.01, "late": 50, "copies": 0, "jitter_s": 0.001},
}


def arrivals_of(
    *, lost: float = 0.0, burst: float = 0.0, late: float = 0, jitter_s: float = 0.0,
    copies: float = 1, frames: int = 240,
) -> list[list[Any]]:  # fmt: skip
    """What comes and when hops are asked for: messages of speech with a pause in its middle.

    Every ``late``-th frame is 30 ms late, which is too rare for the buffer to wait for it.
    """
    random = np.random.default_rng(11)
    said = speech(1, frames * HOP, seed=3)[0].numpy().copy()
    said[frames // 2 * HOP : (frames // 2 + 30) * HOP] *= 1e-3
    codes = codec().stream_encoder(6.0).push(said)
    session = RtpSession(RATE, ssrc=9)
    events: list[tuple[float, list[Any]]] = []
    gone = 0
    for index in range(frames):
        extra = Redundancy(1, codes[index - 1 : index, :2]) if copies and index % 3 else None
        payload = encode_packet(Packet(codes[index : index + 1], extra), bits=BITS)
        message = session.write(Outgoing(payload, index * HOP, marker=index == 0))
        gone = int(random.integers(2, 14)) if random.random() < burst else max(0, gone - 1)
        if gone or random.random() < lost:
            continue
        delay_s = 0.02 + float(random.exponential(jitter_s)) if jitter_s else 0.02
        delay_s += 0.03 if late and index % late == late - 1 else 0.0
        events.append((index * HOP / RATE + delay_s, ["put", message.hex()]))
    events += [(at * HOP / RATE + 0.0301, ["get"]) for at in range(frames)]
    return [[event[0], at, *event[1:]] for at, event in sorted(events, key=lambda one: one[0])]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_heard_is_what_python_plays_repairs_included(
    name: str, node: Any, tmp_path: Path
) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(served_model())
    events = arrivals_of(**NETWORKS[name])
    receiver = Receiver(codec().stream_decoder(6.0))
    receiver._concealer._random = Congruent()  # type: ignore[assignment]
    reader, heard = RtpSession(RATE, ssrc=1), []
    for kind, now_s, *rest in events:
        if kind == "get":
            heard.append(receiver.play(now_s))
            continue
        packet = reader.read(bytes.fromhex(rest[0]), now_s)
        assert packet is not None
        receiver.receive(
            packet.payload, sequence=packet.sequence, timestamp=packet.timestamp,
            ssrc=packet.ssrc, now_s=now_s,
        )  # fmt: skip
    given = node("hear", wasm=str(WASM), model=str(file), books=8, events=events)
    wanted = np.concatenate(heard)
    theirs = np.frombuffer(base64.b64decode(given["heard"]), np.float32).copy()
    assert snr_db(wanted, theirs) > 90
    counts, own = given["counts"], receiver.statistics
    assert counts["repaired"] == own.repairedFrames
    assert counts["copies"] == own.recoveredFrames
    assert counts["received"] == own.packetsReceived
    assert counts["lost"] + counts["silent"] == own.concealedSamples // HOP
    if NETWORKS[name].get("late"):
        assert counts["repaired"] > 0
    if NETWORKS[name].get("lost") or NETWORKS[name].get("burst"):
        assert counts["lost"] > 0


def test_a_call_ends_or_calls_again_in_silence_and_bounds_what_waits_and_what_comes(
    node: Any,
) -> None:
    about = {"sampling_rate": RATE, "codes_sha256": "0" * 64, "hop": HOP, "codebook_bits": BITS}
    message = RtpSession(RATE, ssrc=9).write(Outgoing(b"payload", 0, marker=True))
    given = node("call", about=about, message=message.hex())
    assert given["before"] == []
    assert given["ended"] == ["Nothing came from the other side for 11 s."]
    # Where calling again is possible, that is tried after three seconds.
    assert given["renewed"]["ended"] == []
    assert given["renewed"]["renewed"] == 2
    assert given["renewed"]["words"][-1] == "Connected again."
    # One was sent, one would have waited, and of a flood 400 a second are read.
    assert given["busy"]["sent"] == 1
    assert given["busy"]["dropped"] == 1
    assert given["busy"]["received"] == 400
    assert given["busy"]["refused"] == 600


def test_the_page_says_and_reads_the_protocol_string_of_python(node: Any) -> None:
    form = Format("0123456789abcdef", RATE, HOP, BITS, 8)
    sha256 = "0123456789abcdef" + "0" * 48
    about = {"sampling_rate": RATE, "codes_sha256": sha256, "hop": HOP, "codebook_bits": BITS}
    fewer = Format("0123456789abcdef", RATE, HOP, BITS, 4)
    wrong = [
        form.protocol.replace("hop=320", "hop=640"),
        form.protocol.replace("0123", "1234"),
        form.protocol.replace("/1", "/2"),
        form.protocol.replace("maxcodebooks=8", "maxcodebooks=99"),
        form.protocol.replace("maxcodebooks=8;", ""),
        "", ";;;=;==", "encodec_rt/1",
    ]  # fmt: skip
    given = node("protocol", about=about, books=8, others=[fewer.protocol, form.protocol, *wrong])
    assert given["ours"] == form.protocol
    assert given["taken"][:2] == [4, 8]
    assert all("another model or version" in text for text in given["taken"][2:])
    json.dumps(given)
