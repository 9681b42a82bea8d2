"""Our payload in aiortc's RTP, which has no registry for codecs and no hook for a jitter buffer.

So some of its private attributes are replaced, here and in ``hardening``. Each call checks that
they exist, and the version is pinned, since a new release may rename them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver
from aiortc.codecs import CODECS, HEADER_EXTENSIONS
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import (
    RTCRtcpFeedback,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
)

from encodec_rt.link.bandwidth import PathEstimator
from encodec_rt.link.hardening import harden_dtls, require
from encodec_rt.link.sdp import MIME_TYPE, PAYLOAD_TYPE, Format
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report

SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
SEND_TIME_ID = 3

WAITING_PACKETS = 8
"""Packets that wait for the network before the oldest is dropped."""

_ENCODER = "_RTCRtpSender__encoder"
_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_ESTIMATOR = "_RTCRtpReceiver__remote_bitrate_estimator"


class OutgoingTrack(MediaStreamTrack):
    """Packets on their way to the sender; those that the network does not accept in time are
    dropped."""

    kind = "audio"

    def __init__(self) -> None:
        """Create it inside the running event loop."""
        super().__init__()
        self.dropped = 0
        self._queue: asyncio.Queue[Outgoing | None] = asyncio.Queue(WAITING_PACKETS)

    def send(self, packet: Outgoing) -> None:
        """Hand over a packet, from the event loop's thread."""
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(packet)

    async def recv(self) -> Any:
        """The next packet; aiortc's sender calls this."""
        packet = None if self.readyState != "live" else await self._queue.get()
        if packet is None:
            raise MediaStreamError
        return packet


class _Unmarked(list[bytes]):
    """One payload that aiortc takes for the first of two, so that it sets no marker bit."""

    def __len__(self) -> int:
        return super().__len__() + 1


class _Packer:
    """In place of an aiortc encoder: frames come encoded."""

    def __init__(self, on_estimate: Callable[[float], None]) -> None:
        self._on_estimate = on_estimate
        self._bitrate = 0

    @property
    def target_bitrate(self) -> int:
        """Written by aiortc with each REMB that comes."""
        return self._bitrate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._bitrate = bitrate
        self._on_estimate(float(bitrate))

    def encode(self, frame: object, force_keyframe: bool = False) -> NoReturn:
        """Never called, as the track has no frames of raw audio."""
        raise TypeError("frames must come encoded")

    def pack(self, packet: Outgoing) -> tuple[list[bytes], int]:
        """The payloads and the timestamp of a packet."""
        payloads = [packet.payload]
        return payloads if packet.marker else _Unmarked(payloads), packet.timestamp


class _Tap:
    """In place of aiortc's jitter buffer: every packet goes straight on."""

    def __init__(self, on_packet: Callable[[Received], None]) -> None:
        self._on_packet = on_packet

    def add(self, packet: Any) -> tuple[bool, None]:
        """Take a packet; aiortc need not request a picture and has nothing to decode."""
        received = Received(packet.payload, packet.sequence_number, packet.timestamp, packet.ssrc)
        self._on_packet(received)
        return False, None


def attach(
    connection: RTCPeerConnection,
    form: Format,
    track: OutgoingTrack,
    *,
    on_packet: Callable[[Received], None],
    on_estimate: Callable[[float], None],
) -> None:
    """Make ``connection`` send ``track`` and hand over what it receives, in this format only.

    To be called before the first description is made or set. ``on_estimate`` gets the bandwidth
    that the other side sees, in bits per second. Raises LinkError if a library changed.
    """
    _register(form.rate_hz)
    transceiver = connection.addTransceiver(track, direction="sendrecv")
    capabilities = RTCRtpSender.getCapabilities("audio").codecs
    ours = [c for c in capabilities if c.mimeType == MIME_TYPE and c.clockRate == form.rate_hz]
    transceiver.setCodecPreferences(ours)
    check_private_names(transceiver)
    setattr(transceiver.sender, _ENCODER, _Packer(on_estimate))
    setattr(transceiver.receiver, _JITTER_BUFFER, _Tap(on_packet))
    setattr(transceiver.receiver, _ESTIMATOR, PathEstimator())
    harden_dtls(transceiver.receiver.transport)


def check_private_names(transceiver: RTCRtpTransceiver) -> None:
    """Raise LinkError unless aiortc still has the attributes that ``attach`` replaces."""
    require(transceiver.sender, _ENCODER)
    require(transceiver.receiver, _JITTER_BUFFER, _ESTIMATOR)


async def read_report(connection: RTCPeerConnection) -> Report | None:
    """What the other side last reported, or None before its first report."""
    sent = remote = None
    for entry in (await connection.getTransceivers()[0].sender.getStats()).values():
        if entry.type == "outbound-rtp":
            sent = entry
        elif entry.type == "remote-inbound-rtp":
            remote = entry
    if sent is None or remote is None:
        return None
    return Report(
        # RTCP counts in 256ths.
        fraction_lost=remote.fractionLost / 256,
        packets_lost=remote.packetsLost,
        round_trip_s=remote.roundTripTime,
        packets_sent=sent.packetsSent,
        bytes_sent=sent.bytesSent,
    )


def _register(rate_hz: int) -> None:
    """Let aiortc's negotiation know the payload at this rate.

    The registry is process-wide, so it holds nothing that differs from call to call.
    """
    codecs, extensions = CODECS["audio"], HEADER_EXTENSIONS["audio"]
    if all((codec.mimeType, codec.clockRate) != (MIME_TYPE, rate_hz) for codec in codecs):
        codecs.append(
            RTCRtpCodecParameters(
                mimeType=MIME_TYPE,
                clockRate=rate_hz,
                channels=1,
                payloadType=PAYLOAD_TYPE,
                rtcpFeedback=[RTCRtcpFeedback(type="goog-remb")],
                # aiortc tells codecs apart by these, not by their rate.
                parameters={"rate": str(rate_hz)},
            )
        )
    if all(extension.uri != SEND_TIME for extension in extensions):
        extensions.append(RTCRtpHeaderExtensionParameters(id=SEND_TIME_ID, uri=SEND_TIME))
