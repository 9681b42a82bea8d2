"""RTP and RTCP where messages are carried whole, as in a data channel: bytes in, bytes out.

Pure: every call is told the time. A message is one RTP packet or one RTCP packet, told apart by the
second byte (RFC 5761). Reports are as short as RFC 5506 allows, a sender or receiver report alone,
and their NTP timestamps are the sender's own clock, as RFC 3550 allows where no wall clock is kept.
"""

from __future__ import annotations

import struct

from aiortc.rtp import (
    RtcpPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpSenderInfo,
    RtcpSrPacket,
    RtpPacket,
)

from encodec_rt.errors import PacketError
from encodec_rt.link.sdp import PARSER_ERRORS, PAYLOAD_TYPE
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.statistics import ArrivalCounter
from encodec_rt.voice.transport import Received, Report

RTCP_TYPES = range(192, 224)
MAX_BYTES = 1200
"""Longer messages are not examined: packets are far shorter."""
MAX_LOST = (1 << 23) - 1
MAX_ROUND_TRIP_S = 60.0
"""Beyond this a report is not trusted."""


class RtpSession:
    """Both directions of one stream of packets, and the reports on them."""

    def __init__(self, rate_hz: int, *, ssrc: int, sequence: int = 0, timestamp: int = 0) -> None:
        """Packets are sent as source ``ssrc``; the first has ``sequence``, and its timestamp is
        counted from ``timestamp``.
        """
        self.ssrc = ssrc
        self._rate_hz = rate_hz
        self._sequence, self._timestamp = sequence, timestamp
        self._sent = self._sent_bytes = self._reported = self._last_timestamp = 0
        self._arrivals = ArrivalCounter(rate_hz)
        self._received = 0
        self._before = (0, 0)
        self._source: int | None = None
        self._their_report: tuple[int, float] | None = None
        self._latest: RtcpReceiverInfo | None = None
        self._round_trip_s: float | None = None

    def write(self, packet: Outgoing) -> bytes:
        """The message of a packet to send."""
        self._last_timestamp = self._timestamp + packet.timestamp & 0xFFFFFFFF
        message = RtpPacket(
            payload_type=PAYLOAD_TYPE,
            marker=int(packet.marker),
            sequence_number=self._sequence,
            timestamp=self._last_timestamp,
            ssrc=self.ssrc,
            payload=packet.payload,
        ).serialize()
        self._sequence = self._sequence + 1 & 0xFFFF
        self._sent += 1
        self._sent_bytes += len(packet.payload)
        return message

    def read(self, message: object, now_s: float) -> Received | None:
        """The packet in a message, or None for a report, which is taken into account.

        Raises PacketError, and nothing else, for what is neither.
        """
        if not isinstance(message, bytes) or not 2 <= len(message) <= MAX_BYTES:
            raise PacketError("not a message of RTP or RTCP")
        try:
            if message[1] in RTCP_TYPES:
                self._read_reports(message, now_s)
                return None
            packet = RtpPacket.parse(message)
        except (struct.error, *PARSER_ERRORS) as error:
            raise PacketError(f"a message that cannot be read: {error}") from error
        if packet.payload_type != PAYLOAD_TYPE:
            raise PacketError(f"payload type {packet.payload_type}; {PAYLOAD_TYPE} is accepted")
        self._source = packet.ssrc
        self._received += 1
        self._arrivals.add(packet.sequence_number, packet.timestamp, packet.ssrc, now_s)
        return Received(packet.payload, packet.sequence_number, packet.timestamp, packet.ssrc)

    def write_report(self, now_s: float) -> bytes:
        """The message that reports what was sent and received until now."""
        reports = [] if self._source is None else [self._reception(self._source, now_s)]
        if self._sent == self._reported:
            return bytes(RtcpRrPacket(ssrc=self.ssrc, reports=reports))
        self._reported = self._sent
        info = RtcpSenderInfo(
            ntp_timestamp=_ntp(now_s),
            rtp_timestamp=self._last_timestamp,
            packet_count=self._sent & 0xFFFFFFFF,
            octet_count=self._sent_bytes & 0xFFFFFFFF,
        )
        return bytes(RtcpSrPacket(ssrc=self.ssrc, sender_info=info, reports=reports))

    @property
    def report(self) -> Report | None:
        """What the other side last reported, or None before its first report."""
        if self._latest is None:
            return None
        return Report(
            fraction_lost=self._latest.fraction_lost / 256,
            packets_lost=self._latest.packets_lost,
            round_trip_s=self._round_trip_s,
            packets_sent=self._sent,
            bytes_sent=self._sent_bytes,
        )

    def _read_reports(self, message: bytes, now_s: float) -> None:
        for packet in RtcpPacket.parse(message):
            if isinstance(packet, RtcpSrPacket):
                self._their_report = packet.sender_info.ntp_timestamp >> 16 & 0xFFFFFFFF, now_s
            if isinstance(packet, (RtcpSrPacket, RtcpRrPacket)):
                for report in packet.reports:
                    if report.ssrc == self.ssrc:
                        self._latest = report
                        self._measure(report, now_s)

    def _measure(self, report: RtcpReceiverInfo, now_s: float) -> None:
        if not report.lsr:
            return
        passed = (_ntp(now_s) >> 16) - report.lsr - report.dlsr & 0xFFFFFFFF
        if passed / 65536 <= MAX_ROUND_TRIP_S:
            self._round_trip_s = passed / 65536

    def _reception(self, source: int, now_s: float) -> RtcpReceiverInfo:
        """The report block of what was received (RFC 3550, 6.4.1)."""
        lost, received = self._arrivals.lost, self._received
        lost_now, received_now = lost - self._before[0], received - self._before[1]
        self._before = lost, received
        share = 256 * lost_now // (lost_now + received_now) if lost_now > 0 else 0
        lsr, at_s = self._their_report or (0, now_s)
        return RtcpReceiverInfo(
            ssrc=source,
            fraction_lost=min(share, 255),
            packets_lost=max(-MAX_LOST, min(lost, MAX_LOST)),
            highest_sequence=self._arrivals.highest & 0xFFFFFFFF,
            jitter=int(self._arrivals.jitter_s * self._rate_hz) & 0xFFFFFFFF,
            lsr=lsr,
            dlsr=int((now_s - at_s) * 65536) & 0xFFFFFFFF,
        )


def _ntp(now_s: float) -> int:
    return int(now_s * (1 << 32)) & (1 << 64) - 1
