"""One call: both directions of audio over a transport, and what became of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np

from encodec_rt.errors import LinkError
from encodec_rt.streaming.frames import FrameDecoder, FrameEncoder
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.activity import EnergyDetector
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.receiver import Receiver
from encodec_rt.voice.sender import Sender
from encodec_rt.voice.statistics import latency_ms, percentiles
from encodec_rt.voice.token_bucket import TokenBucket
from encodec_rt.voice.transport import Received, Report, Transport

T = TypeVar("T")

REPORT_S = 1.0
MAX_PACKETS_PER_S = 400
"""More than twice what a sender of one frame per packet, each doubled, would send."""


class CallSource(Protocol):
    """Gives a hop of audio whenever its clock has one."""

    async def read(self) -> Audio | None:
        """The next hop, float32 [channels, hop], or None when there is no more."""

    def close(self) -> None:
        """Let go of the device or file."""


class CallSink(Protocol):
    """Takes a hop of audio whenever its clock wants one."""

    async def ready(self) -> float:
        """Return when the next hop is wanted: for which time, on the event loop's clock.

        That time advances by a hop each, however late this machine is with its work.
        """

    def write(self, audio: Audio) -> None:
        """Take a hop, float32 [hop] or [channels, hop]."""

    def close(self) -> None:
        """Keep what was heard, and let go of the device or file."""


@dataclass(frozen=True)
class VoiceOptions:
    """How a voice path behaves; both sides choose their own."""

    bandwidth_kbps: float = 6.0
    redundancy: bool = True
    dtx: bool = True
    """Send nothing while nobody speaks."""
    hang_up_s: float | None = None
    """How long after the end of the source to hang up, or None to stay on the line."""
    handshake_s: float = 15.0
    idle_s: float = 10.0
    """Without a packet for so long the other side counts as gone."""


class VoiceCall:
    """One side of a call, over a transport that was made for it: ``run`` it to its end."""

    def __init__(
        self,
        encoder: FrameEncoder,
        decoder: FrameDecoder,
        source: CallSource,
        sink: CallSink,
        transport: Transport,
        options: VoiceOptions | None = None,
        *,
        in_worker: Callable[[], None] | None = None,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        """To be made inside the event loop. ``source``, ``sink`` and ``transport`` are closed with
        the call.

        ``in_worker`` runs first in the codec's thread. ``warm_up`` runs there while the transport
        connects, so that the first frames, which take a tenth of a second, are none of the call's.
        """
        self.voice = options or VoiceOptions()
        config = encoder.config
        self._source, self._sink, self.transport = source, sink, transport
        self._hop_s = config.hop_length / config.sampling_rate
        self._bits, self._codebooks = config.codebook_nbits, encoder.codebooks
        self.listener = Receiver(decoder)
        self._encoder = encoder
        self._detector = EnergyDetector(frame_s=self._hop_s)
        self._sender = Sender(config, self._make_controller(self._codebooks), self._hand_over)
        # One worker: a codec is used by one thread at a time.
        self._worker = ThreadPoolExecutor(1, "encodec-rt-call", in_worker)
        self._warm_up = warm_up
        self._warmed: asyncio.Future[None] | None = None
        self._heard_s: float | None = None
        self._allowance = TokenBucket(MAX_PACKETS_PER_S, MAX_PACKETS_PER_S)
        self._report: Report | None = None
        self._encode_ms: deque[float] = deque(maxlen=1000)
        self._decode_ms: deque[float] = deque(maxlen=1000)
        self.refused_packets = 0
        transport.open(self._on_packet, self._on_estimate)

    def prepare(self) -> None:
        """Begin to warm up; ``run`` does so at the latest."""
        if self._warm_up is not None and self._warmed is None:
            self._warmed = asyncio.ensure_future(self._compute(self._warm_up))

    def limit(self, codebooks: int) -> None:
        """Send at most so many codebooks, as the other side takes no more."""
        self._sender.controller = self._make_controller(min(codebooks, self._codebooks))

    async def run(self) -> None:
        """Talk and listen until one side hangs up.

        Raises LinkError if no connection comes about, or if the other side falls silent for good.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.prepare()
            await self._connect(self.voice.handshake_s)
            if self._warmed is not None:
                await self._warmed
            self._heard_s = self._now_s()
            parts = (self._talk, self._hear, self._watch, self.transport.wait_ended)
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
        await self.transport.close()
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
        self._source.close()
        self._sink.close()

    def statistics(self) -> dict[str, object]:
        """The call so far, under the names of webrtc-stats, ours in "encodecRt"."""
        report, controller = self._report, self._sender.controller
        plan = controller.plan(self._now_s())
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
            "estimatedBitrate": controller.estimate_bps,
            "packetsDroppedBeforeSending": self.transport.dropped,
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

    def _make_controller(self, codebooks: int) -> RateController:
        return RateController(
            codebooks=codebooks,
            bits=self._bits,
            frame_rate_hz=1 / self._hop_s,
            redundancy=self.voice.redundancy,
        )

    async def _talk(self) -> None:
        while (audio := await self._source.read()) is not None:
            started = perf_counter()
            frames, active = await self._compute(self._encode, audio)
            self._encode_ms.append(1000 * (perf_counter() - started))
            for codes in frames:
                self._sender.push(codes, self._now_s(), active=active)
        hang_up_s = self.voice.hang_up_s
        await self._keep_alive(float("inf") if hang_up_s is None else hang_up_s)

    async def _keep_alive(self, seconds: float) -> None:
        """Announce silence, so that the other side knows the line is open."""
        until_s = self._now_s() + seconds
        nothing = np.zeros(self._codebooks, np.uint16)
        while self._now_s() < until_s:
            self._sender.push(nothing, self._now_s(), active=False)
            await asyncio.sleep(self._hop_s)

    def _hand_over(self, packet: Outgoing, now_s: float) -> None:
        self.transport.send(packet)

    def _encode(self, audio: Audio) -> tuple[Codes, bool]:
        active = self._detector.is_active(audio) or not self.voice.dtx
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
            self._report = await self.transport.report()
            if self._report is not None:
                self._sender.controller.on_report(
                    self._report.fraction_lost, self._report.round_trip_s, self._now_s()
                )
            silent_s = self._now_s() - (self._heard_s or self._now_s())
            if silent_s > self.voice.idle_s:
                raise LinkError(f"nothing came from the other side for {silent_s:.0f} s")

    async def _connect(self, seconds: float) -> None:
        try:
            connected = await asyncio.wait_for(self.transport.wait_connected(), seconds)
        except asyncio.TimeoutError:
            reason = f"took more than {seconds:g} s"
        else:
            if connected:
                return
            reason = "failed"
        raise LinkError(
            f"connecting to the other side {reason}; is UDP between the two machines open?"
        )

    async def _compute(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    def _on_packet(self, packet: Received) -> None:
        now_s = self._now_s()
        if not self._allowance.allows(now_s):
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
        self._sender.controller.on_estimate(bitrate_bps, self._now_s())

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
