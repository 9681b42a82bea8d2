"""Our payload in aiortc's RTP: the one module that touches aiortc's private names.

aiortc has no registry for codecs and no hook for a jitter buffer, so six of its attributes are
replaced. They are checked for when the module is first used, and the version is pinned, since a new
release may rename them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver, sdp
from aiortc.codecs import CODECS, HEADER_EXTENSIONS
from aiortc.mediastreams import MediaStreamError
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcrtpparameters import (
    RTCRtcpFeedback,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
)

from encodec_rt.bitstream.packet import MAX_FRAMES
from encodec_rt.errors import LinkError
from encodec_rt.link.channel import HEADER_BYTES
from encodec_rt.link.packetizer import Outgoing
from encodec_rt.link.transit import StandingQueue

MIME_TYPE = "audio/vnd.encodec-rt"
"""Not registered with IANA; the vendor tree is where such names live (RFC 6838)."""
PAYLOAD_TYPE = 118
SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
SEND_TIME_ID = 3

LEAST_QUEUE_S = 0.01
"""A shorter standing queue is none."""
WAITING_PACKETS = 8
"""Packets that wait for the network before the oldest is dropped."""
MOST_CANDIDATES = 64
MOST_DATAGRAM_BYTES = 1500
"""Longer ones are not ours, and beyond 2046 bytes they would end aiortc's receiving."""

PARSER_ERRORS = (
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError),
    *(StopIteration, RuntimeError),
)
"""How aiortc fails on garbage: its parser was written for friends. A StopIteration within a
coroutine becomes a RuntimeError."""

_ENCODER = "_RTCRtpSender__encoder"
_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_ESTIMATOR = "_RTCRtpReceiver__remote_bitrate_estimator"
_RECEIVE = "_recv"


@dataclass(frozen=True)
class Format:
    """What both ends must agree on: it travels as the fmtp line of the SDP."""

    model: str
    rate_hz: int
    hop: int
    bits: int
    codebooks: int

    @property
    def parameters(self) -> dict[str, str]:
        """The fmtp parameters, named in the style of RFC 7587."""
        return {
            "rate": str(self.rate_hz),
            "model": self.model,
            "hop": str(self.hop),
            "bits": str(self.bits),
            "maxcodebooks": str(self.codebooks),
            "maxframes": str(MAX_FRAMES),
        }

    def describe(self, description: str) -> str:
        """aiortc's SDP with all our parameters; aiortc knows but the rate."""
        short = f"a=fmtp:{PAYLOAD_TYPE} rate={self.rate_hz}"
        full = ";".join(f"{name}={value}" for name, value in self.parameters.items())
        return description.replace(short, f"a=fmtp:{PAYLOAD_TYPE} {full}")

    def check_remote(self, description: str) -> int:
        """The most codebooks that the peer's SDP allows.

        Raises LinkError unless it offers one audio stream in this format, and nothing else.
        """
        theirs = _read_parameters(description)
        for name in ("model", "rate", "hop", "bits"):
            ours = self.parameters[name]
            if theirs.get(name) != ours:
                raise LinkError(
                    f"the other side has {name}={theirs.get(name)!r} and this one {ours!r}; "
                    "both ends of a call need the same model"
                )
        most = str(theirs.get("maxcodebooks"))
        if not most.isdecimal() or not 1 <= int(most) <= 32:
            raise LinkError(f"the other side accepts maxcodebooks={most!r}; 1 to 32 are possible")
        return int(most)


@dataclass(frozen=True)
class Received:
    """An RTP packet as it came, after decryption."""

    payload: bytes
    sequence: int
    timestamp: int
    ssrc: int


@dataclass(frozen=True)
class Report:
    """The latest receiver report from the other side."""

    fraction_lost: float
    packets_lost: int
    round_trip_s: float | None
    packets_sent: int
    bytes_sent: int


class OutgoingTrack(MediaStreamTrack):
    """Packets on their way to the sender; what the network does not take in time is dropped."""

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
        """Never called, as the track gives no frames of raw audio."""
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
        """Take a packet; no picture is lost, and nothing is for aiortc to decode."""
        received = Received(packet.payload, packet.sequence_number, packet.timestamp, packet.ssrc)
        self._on_packet(received)
        return False, None


class Estimator(RemoteBitrateEstimator):
    """aiortc's congestion estimate, with headers counted, and deaf to jitter without a queue.

    The estimate is made for video, whose packets come in bursts. A voice stream's single packets
    look like overuse whenever the path jitters; then the rate would collapse for nothing.
    """

    def __init__(self) -> None:
        """An estimate of nothing yet."""
        super().__init__()
        self._queue = StandingQueue()
        self._sent_s: float | None = None

    def add(self, arrival_time_ms: int, abs_send_time: int, payload_size: int, ssrc: int) -> Any:
        """The estimate in bits per second and whom it is for, now and then; else None."""
        arrival_s = arrival_time_ms / 1000
        self._queue.add(arrival_s - self._unwrap(abs_send_time), arrival_s)
        result = super().add(
            arrival_time_ms=arrival_time_ms,
            abs_send_time=abs_send_time,
            payload_size=payload_size + HEADER_BYTES,
            ssrc=ssrc,
        )
        incoming = self.incoming_bitrate.rate(arrival_time_ms)
        if result is None or incoming is None or self._queue.delay_s > LEAST_QUEUE_S:
            return result
        # What aiortc lets itself grow to at once.
        bitrate = max(result[0], int(1.5 * incoming) + 10_000)
        self.rate_control.set_estimate(bitrate, arrival_time_ms)
        return bitrate, result[1]

    def _unwrap(self, abs_send_time: int) -> float:
        """Seconds, from 24 bits that wrap each 64 s."""
        sent_s = abs_send_time / (1 << 18)
        if self._sent_s is not None:
            sent_s += 64 * round((self._sent_s - sent_s) / 64)
        self._sent_s = sent_s
        return sent_s


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
    that the other side sees, in bits per second. Raises LinkError if aiortc is not as expected.
    """
    _register(form.rate_hz)
    transceiver = connection.addTransceiver(track, direction="sendrecv")
    capabilities = RTCRtpSender.getCapabilities("audio").codecs
    ours = [c for c in capabilities if c.mimeType == MIME_TYPE and c.clockRate == form.rate_hz]
    transceiver.setCodecPreferences(ours)
    check_private_names(transceiver)
    setattr(transceiver.sender, _ENCODER, _Packer(on_estimate))
    setattr(transceiver.receiver, _JITTER_BUFFER, _Tap(on_packet))
    setattr(transceiver.receiver, _ESTIMATOR, Estimator())
    path = transceiver.receiver.transport.transport
    setattr(path, _RECEIVE, _guarded(getattr(path, _RECEIVE)))


def _guarded(receive: Callable[[], Awaitable[bytes]]) -> Callable[[], Awaitable[bytes]]:
    """``receive`` without the datagrams that would end aiortc's loop, whoever sent them.

    It reads the first byte of an empty one and hands a long one to libsrtp's buffer.
    """

    async def guarded() -> bytes:
        while True:
            datagram = await receive()
            if 0 < len(datagram) <= MOST_DATAGRAM_BYTES:
                return datagram

    return guarded


def check_private_names(transceiver: RTCRtpTransceiver) -> None:
    """Raise LinkError unless aiortc still has the attributes that ``attach`` replaces."""
    wanted = (
        (transceiver.sender, _ENCODER),
        (transceiver.receiver, _JITTER_BUFFER),
        (transceiver.receiver, _ESTIMATOR),
    )
    path = getattr(getattr(transceiver.receiver, "transport", None), "transport", None)
    for owner, name in (*wanted, (path, _RECEIVE)):
        if not hasattr(owner, name):
            raise LinkError(
                f"this aiortc has no {type(owner).__name__}.{name}; install aiortc>=1.16,<1.17"
            )


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

    The registry belongs to the whole process, so that what differs from call to call is not in it.
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


def _read_parameters(description: str) -> dict[str, Any]:
    """The fmtp parameters of our codec in an SDP."""
    try:
        session = sdp.SessionDescription.parse(description)
        sections = [(media.kind, len(media.ice_candidates)) for media in session.media]
        codecs = [codec for media in session.media for codec in media.rtp.codecs]
    except PARSER_ERRORS as error:
        raise LinkError(f"not a session description: {type(error).__name__}") from None
    if len(sections) != 1 or sections[0][0] != "audio" or sections[0][1] > MOST_CANDIDATES:
        raise LinkError(
            f"a session description of {[kind for kind, _ in sections]}; one audio stream with at "
            f"most {MOST_CANDIDATES} candidates is accepted"
        )
    found = [codec for codec in codecs if codec.mimeType.lower() == MIME_TYPE]
    if not found:
        names = ", ".join(sorted({codec.mimeType for codec in codecs})) or "no codec"
        raise LinkError(f"the other side offers {names}; {MIME_TYPE} is needed")
    return dict(found[0].parameters)
