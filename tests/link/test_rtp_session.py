"""RTP and RTCP as messages: what is read is what was written, and garbage is refused by name."""

from __future__ import annotations

import random
import struct

import pytest
from aiortc.rtp import RtcpPacket, RtcpRrPacket, RtcpSrPacket

from encodec_rt.errors import PacketError
from encodec_rt.link.rtp_session import RtpSession
from encodec_rt.voice.packetizer import Outgoing

RATE_HZ, HOP = 24_000, 320


def sessions() -> tuple[RtpSession, RtpSession]:
    return (
        RtpSession(RATE_HZ, ssrc=1, sequence=65_500, timestamp=(1 << 32) - 100 * HOP),
        RtpSession(RATE_HZ, ssrc=2),
    )


def test_the_documented_packet_is_what_is_written() -> None:
    session = RtpSession(RATE_HZ, ssrc=0x1D2C3B4A, sequence=4711)
    payload = bytes.fromhex("436d332099e815 37105e060b".replace(" ", ""))
    message = session.write(Outgoing(payload, 9600, marker=True))
    documented = "80 f6 12 67 00 00 25 80 1d 2c 3b 4a 43 6d 33 20 99 e8 15 37 10 5e 06 0b"
    assert message == bytes.fromhex(documented)


def test_packets_come_as_they_were_sent_and_both_numbers_wrap() -> None:
    one, other = sessions()
    for index in range(200):
        sent = Outgoing(bytes([index]), index * HOP, marker=index == 0)
        received = other.read(one.write(sent), index * HOP / RATE_HZ)
        assert received is not None
        assert received.payload == sent.payload
        assert received.ssrc == 1
        assert received.sequence == 65_500 + index & 0xFFFF
        assert received.timestamp == (index - 100) * HOP & 0xFFFFFFFF


def test_reports_tell_of_loss_and_of_the_way_there_and_back() -> None:
    one, other = sessions()
    assert one.report is None
    for index in range(300):
        now_s = index * HOP / RATE_HZ
        message = one.write(Outgoing(b"x", index * HOP, marker=False))
        if index % 4:
            other.read(message, now_s + 0.05)
    # The sender's report travels 50 ms, the answer to it leaves 200 ms later and takes 30 ms.
    assert other.read(one.write_report(4.0), 4.05) is None
    answer = other.write_report(4.25)
    assert one.read(answer, 4.28) is None
    report = one.report
    assert report is not None
    assert report.fraction_lost == pytest.approx(0.25, abs=0.01)
    assert report.packets_lost == 74
    assert report.round_trip_s == pytest.approx(0.08, abs=1e-4)
    assert (report.packets_sent, report.bytes_sent) == (300, 300)
    # Nothing more was lost since.
    for index in range(300, 320):
        other.read(one.write(Outgoing(b"x", index * HOP, marker=False)), index * HOP / RATE_HZ)
    one.read(other.write_report(5.0), 5.0)
    assert one.report is not None
    assert one.report.fraction_lost == 0


def test_who_sends_writes_sender_reports_and_who_does_not_receiver_reports() -> None:
    one, _ = sessions()
    (kind,) = RtcpPacket.parse(one.write_report(1.0))
    assert isinstance(kind, RtcpRrPacket)
    one.write(Outgoing(b"x", 0, marker=True))
    (kind,) = RtcpPacket.parse(one.write_report(2.0))
    assert isinstance(kind, RtcpSrPacket)
    assert kind.sender_info.packet_count == 1
    (kind,) = RtcpPacket.parse(one.write_report(3.0))
    assert isinstance(kind, RtcpRrPacket)


@pytest.mark.parametrize(
    "message", ["text", b"", b"\x80", b"\x80\x76", b"\x80\xc9", b"\x80\x76" + bytes(2000), None]
)
def test_what_is_neither_is_refused(message: object) -> None:
    with pytest.raises(PacketError):
        RtpSession(RATE_HZ, ssrc=1).read(message, 0.0)


def test_another_payload_type_is_refused() -> None:
    with pytest.raises(PacketError, match="payload type 0"):
        RtpSession(RATE_HZ, ssrc=1).read(struct.pack(">BBHII", 0x80, 0, 1, 2, 3), 0.0)


def test_a_hundred_thousand_hostile_messages_raise_nothing_else() -> None:
    rng = random.Random(5)
    one, other = sessions()
    seeds = [one.write(Outgoing(b"payload", 0, marker=True)), one.write_report(1.0)]
    other.read(seeds[0], 0.0)
    other.read(seeds[1], 0.0)
    other.write(Outgoing(b"payload", 0, marker=True))
    seeds.append(other.write_report(1.5))
    taken = 0
    for number in range(100_000):
        if number % 2:
            message = rng.randbytes(rng.randrange(60))
        else:
            damaged = bytearray(seeds[rng.randrange(3)])
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            message = bytes(damaged[: rng.randrange(len(damaged) + 1)] if number % 3 else damaged)
        try:
            one.read(message, number / 100)
        except PacketError:
            continue
        taken += 1
    assert 1000 < taken < 60_000
    # It still answers, and believes no round trip of hours.
    RtcpPacket.parse(one.write_report(2000.0))
    report = one.report
    assert report is None or report.round_trip_s is None or report.round_trip_s <= 60
