"""One call: a peer connection, both directions of audio, and what became of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from encodec_rt.errors import LinkError
from encodec_rt.link import rtp
from encodec_rt.link.admission import RateLimit
from encodec_rt.link.endpoints import CallSink, CallSource
from encodec_rt.link.sdp import Format, refusing
from encodec_rt.sound.realtime import run_in_real_time
from encodec_rt.streaming.codec import Codec, warm_up
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.activity import EnergyDetector
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.packetizer import Packetizer
from encodec_rt.voice.receiver import Receiver
from encodec_rt.voice.statistics import latency_ms, percentiles

logger = logging.getLogger(__name__)
T = TypeVar("T")

REPORT_S = 1.0
MAX_PACKETS_PER_S = 400
"""More than twice what a sender of one frame per packet, each doubled, would send."""


@dataclass(frozen=True)
class CallOptions:
    """How a call is made; both sides choose their own."""

    bandwidth_kbps: float = 6.0
    redundancy: bool = True
    dtx: bool = True
    """Send nothing while nobody speaks."""
    hang_up_s: float | None = None
    """How long after the end of the source to hang up, or None to stay on the line."""
    handshake_s: float = 15.0
    idle_s: float = 10.0
    """Without a packet for so long the other side counts as gone."""
    ice_servers: Sequence[str] = field(default=())
    real_time: bool = False
    """Whether the codec's thread has real-time scheduling."""


class Call:
    """One side of one call. Make it, ``offer`` or ``answer``, then ``run`` it to its end."""

    def __init__(
        self, codec: Codec, source: CallSource, sink: CallSink, options: CallOptions | None = None
    ) -> None:
        """To be made inside the event loop. ``source`` and ``sink`` are closed with the call."""
        self.options = options or CallOptions()
        config = codec.config
        kbps = self.options.bandwidth_kbps
        self._codec, self._source, self._sink = codec, source, sink
        self._hop_s = config.hop_length / config.sampling_rate
        self._format = Format(
            model=codec.weights_sha256[:16],
            rate_hz=config.sampling_rate,
            hop=config.hop_length,
            bits=config.codebook_nbits,
            codebooks=config.codebooks_for(kbps),
        )
        self.listener = Receiver(codec.stream_decoder(kbps))
        self._encoder = codec.stream_encoder(kbps)
        self._packetizer = Packetizer(hop=config.hop_length, bits=config.codebook_nbits)
        self._detector = EnergyDetector(frame_s=self._hop_s)
        self._controller = self._make_controller(self._format.codebooks)
        self._track = rtp.OutgoingTrack()
        # One worker: a codec is used by one thread at a time.
        self._worker = ThreadPoolExecutor(
            1, "encodec-rt-call", run_in_real_time if self.options.real_time else None
        )
        self._warmed: asyncio.Future[None] | None = None
        self._connected, self._ended = asyncio.Event(), asyncio.Event()
        self._heard_s: float | None = None
        self._allowance = RateLimit(MAX_PACKETS_PER_S, MAX_PACKETS_PER_S)
        self._report: rtp.Report | None = None
        self._encode_ms: deque[float] = deque(maxlen=1000)
        self._decode_ms: deque[float] = deque(maxlen=1000)
        self.refused_packets = 0
        servers = [RTCIceServer(urls=url) for url in self.options.ice_servers]
        # Without a list aiortc would ask a public STUN server for this machine's address.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)
        rtp.attach(
            self._connection,
            self._format,
            self._track,
            on_packet=self._on_packet,
            on_estimate=self._on_estimate,
        )

    async def offer(self) -> str:
        """The SDP to send to the other side."""
        self._warm()
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return self._format.describe(self._connection.localDescription.sdp)

    async def answer(self, offer: str) -> str:
        """The SDP to send back for ``offer``. Raises LinkError for one that cannot be met."""
        with refusing("offer"):
            await self._accept(offer, "offer")
            self._warm()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        return self._format.describe(self._connection.localDescription.sdp)

    async def accept(self, answer: str) -> None:
        """Take the other side's SDP. Raises LinkError for one that does not fit."""
        with refusing("answer"):
            await self._accept(answer, "answer")

    async def run(self) -> None:
        """Talk and listen until one side hangs up.

        Raises LinkError if no connection comes about, or if the other side falls silent for good.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._within(self._connected.wait(), self.options.handshake_s)
            if self._warmed is not None:
                await self._warmed
            self._heard_s = self._now_s()
            parts = (self._talk, self._hear, self._watch, self._ended.wait)
            tasks = [asyncio.create_task(part()) for part in parts]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Hang up; the recording is finished and everything released. Harmless when repeated."""
        self._ended.set()
        self._track.stop()
        await self._connection.close()
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
        self._source.close()
        self._sink.close()

    def statistics(self) -> dict[str, object]:
        """The call so far, under the names of webrtc-stats, ours in "encodecRt"."""
        report, plan = self._report, self._controller.plan(self._now_s())
        outbound: dict[str, object] = {"type": "outbound-rtp", "kind": "audio"}
        remote: dict[str, object] = {"type": "remote-inbound-rtp", "kind": "audio"}
        if report is not None:
            outbound |= {"packetsSent": report.packets_sent, "bytesSent": report.bytes_sent}
            remote |= {
                "packetsLost": report.packets_lost,
                "fractionLost": report.fraction_lost,
                "roundTripTime": report.round_trip_s,
            }
        own: dict[str, object] = {
            "framesPerPacket": plan.frames,
            "codebooks": plan.codebooks,
            "redundantFrames": plan.copies,
            "estimatedBitrate": self._controller.estimate_bps,
            "packetsDroppedBeforeSending": self._track.dropped,
            "packetsRefused": self.refused_packets,
            "encodeMs": percentiles(self._encode_ms),
            "decodeMs": percentiles(self._decode_ms),
            "latencyMs": latency_ms(
                self.listener.statistics,
                frame_ms=1000 * self._hop_s,
                frames_per_packet=plan.frames,
                encode_ms=self._encode_ms,
                decode_ms=self._decode_ms,
                round_trip_s=report.round_trip_s if report is not None else None,
            ),
        }
        inbound = self.listener.statistics.as_dict()
        return {"inbound": inbound, "outbound": outbound, "remote": remote, "encodecRt": own}

    async def _accept(self, description: str, kind: str) -> None:
        most = self._format.check_remote(description)
        self._controller = self._make_controller(min(most, self._format.codebooks))
        await self._connection.setRemoteDescription(
            RTCSessionDescription(sdp=description, type=kind)
        )

    def _warm(self) -> None:
        """Let the worker's first frames, which take a tenth of a second, be none of the call's."""
        self._warmed = asyncio.ensure_future(
            self._compute(warm_up, self._codec, self.options.bandwidth_kbps, "primed")
        )

    def _make_controller(self, codebooks: int) -> RateController:
        return RateController(
            codebooks=codebooks,
            bits=self._format.bits,
            frame_rate_hz=1 / self._hop_s,
            redundancy=self.options.redundancy,
        )

    async def _talk(self) -> None:
        while (audio := await self._source.read()) is not None:
            started = perf_counter()
            frames, active = await self._compute(self._encode, audio)
            self._encode_ms.append(1000 * (perf_counter() - started))
            for codes in frames:
                self._send(codes, active=active)
        hang_up_s = self.options.hang_up_s
        await self._keep_alive(float("inf") if hang_up_s is None else hang_up_s)

    async def _keep_alive(self, seconds: float) -> None:
        """Announce silence, so that the other side knows the line is open."""
        until_s = self._now_s() + seconds
        nothing = np.zeros(self._format.codebooks, np.uint16)
        while self._now_s() < until_s:
            self._send(nothing, active=False)
            await asyncio.sleep(self._hop_s)

    def _send(self, codes: Codes, *, active: bool) -> None:
        now_s = self._now_s()
        plan = self._controller.plan(now_s)
        for packet in self._packetizer.push(codes, plan, active=active):
            self._controller.on_sent(len(packet.payload), now_s)
            self._track.send(packet)

    def _encode(self, audio: Audio) -> tuple[Codes, bool]:
        active = self._detector.is_active(audio) or not self.options.dtx
        return self._encoder.push(audio), active

    async def _hear(self) -> None:
        while True:
            planned = self.listener.take(await self._sink.ready())
            started = perf_counter()
            audio = await self._compute(self.listener.render, planned)
            self._decode_ms.append(1000 * (perf_counter() - started))
            self._sink.write(audio)

    async def _watch(self) -> None:
        """Pass on receiver reports, and end the call when nothing comes any more."""
        while True:
            await asyncio.sleep(REPORT_S)
            self._report = await rtp.read_report(self._connection)
            if self._report is not None:
                self._controller.on_report(
                    self._report.fraction_lost, self._report.round_trip_s, self._now_s()
                )
            silent_s = self._now_s() - (self._heard_s or self._now_s())
            if silent_s > self.options.idle_s:
                raise LinkError(f"nothing came from the other side for {silent_s:.0f} s")

    async def _within(self, event: Awaitable[object], seconds: float) -> None:
        ended = asyncio.ensure_future(self._ended.wait())
        waiting = asyncio.ensure_future(event)
        done, pending = await asyncio.wait(
            {ended, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        if waiting not in done:
            reason = "failed" if ended in done else f"took more than {seconds:g} s"
            raise LinkError(
                f"connecting to the other side {reason}; is UDP between the two machines open?"
            )

    async def _compute(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    def _on_packet(self, packet: rtp.Received) -> None:
        now_s = self._now_s()
        if not self._allowance.allows("", now_s):
            self.refused_packets += 1
            return
        if self._heard_s is None:
            # Nobody listens yet, and what waits now would delay all that follows.
            return
        self.listener.receive(
            packet.payload,
            sequence=packet.sequence,
            timestamp=packet.timestamp,
            ssrc=packet.ssrc,
            now_s=now_s,
        )
        self._heard_s = now_s

    def _on_estimate(self, bitrate_bps: float) -> None:
        self._controller.on_estimate(bitrate_bps, self._now_s())

    def _on_state(self) -> None:
        state = self._connection.connectionState
        logger.info("connection %s", state)
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self._ended.set()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
