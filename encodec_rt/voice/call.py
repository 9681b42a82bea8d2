"""One call: both directions of audio over a transport, and their statistics."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from encodec_rt.errors import LinkError
from encodec_rt.streaming.frames import FrameDecoder, FrameEncoder
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.activity import EnergyDetector
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.line import Line
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.receiver import HopPlan, Receiver
from encodec_rt.voice.recording import CallRecording
from encodec_rt.voice.sender import Sender
from encodec_rt.voice.statistics import CodecTimes, latency_ms, percentiles
from encodec_rt.voice.transport import (
    CallSink,
    CallSource,
    Received,
    Report,
    Transport,
    remote_statistics,
)

T = TypeVar("T")

REPORT_S = 1.0


@dataclass(frozen=True)
class VoiceOptions:
    """How a voice path behaves; both sides choose their own."""

    bandwidth_kbps: float = 6.0
    redundancy: bool = True
    dtx: bool = True
    """Send nothing during silence."""
    hang_up_s: float | None = None
    """How long after the end of the source to hang up, or None to stay on the line."""
    handshake_s: float = 15.0
    idle_s: float = 10.0
    """The other side counts as gone after this long without a packet."""
    reconnect_s: float = 0.0
    """How long a call whose path is dead waits for another path instead; 0 for not at all."""


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
        recording: CallRecording | None = None,
    ) -> None:
        """To be made inside the event loop. ``source``, ``sink``, ``transport`` and ``recording``
        are closed with the call. ``encoder`` and ``decoder`` restart whenever the line does.

        ``in_worker`` runs first in the codec's thread. ``warm_up`` runs there while the transport
        connects, so that the first frames, which take a tenth of a second, are not part of the
        call.
        """
        self.voice = options or VoiceOptions()
        config = encoder.config
        self._source, self._sink, self._recording = source, sink, recording
        self._hop_s = config.hop_length / config.sampling_rate
        self._codebooks = encoder.codebooks
        self.listener = Receiver(decoder)
        self._encoder, self._encoder_start = encoder, encoder.snapshot()
        self._anew = False
        self._detector = EnergyDetector(frame_s=self._hop_s)
        controller = RateController(
            codebooks=encoder.codebooks,
            bits=config.codebook_nbits,
            frame_rate_hz=1 / self._hop_s,
            redundancy=self.voice.redundancy,
        )
        self._sender = Sender(config, controller, self._hand_over)
        # One worker: a codec is used by one thread at a time.
        self._worker = ThreadPoolExecutor(1, "encodec-rt-call", in_worker)
        self._warm_up = warm_up
        self._warmed: asyncio.Future[None] | None = None
        self._heard_s: float | None = None
        self._renewed_s = -math.inf
        self._report: Report | None = None
        self._times = CodecTimes(self._hop_s)
        self.line = Line(transport, self._on_packet, self._on_estimate, self._on_renewed)

    @property
    def silent_s(self) -> float:
        """For how long nothing has come from the other side; 0 before the call has begun."""
        now_s = self._now_s()
        return now_s - (self._heard_s if self._heard_s is not None else now_s)

    @property
    def path_silent_s(self) -> float:
        """As ``silent_s``, but restarted when the call continues over another path."""
        return min(self.silent_s, self._now_s() - self._renewed_s)

    @property
    def codec_share(self) -> float:
        """As ``CodecTimes.share``."""
        return self._times.share

    def prepare(self) -> None:
        """Begin to warm up; ``run`` does so at the latest."""
        if self._warm_up is not None and self._warmed is None:
            self._warmed = asyncio.ensure_future(self._compute(self._warm_up))

    def limit(self, codebooks: int) -> None:
        """As ``Sender.limit``."""
        self._sender.limit(codebooks)

    async def run(self) -> None:
        """Talk and listen until one side hangs up.

        Raises LinkError if no connection is made, or if the other side stays silent.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.prepare()
            await self.line.connect(self.voice.handshake_s)
            if self._warmed is not None:
                await self._warmed
            self._heard_s = self._now_s()
            ended = partial(self.line.wait_ended, patient=self.voice.reconnect_s > 0)
            parts = (self._talk, self._hear, self._watch, ended)
            tasks = [asyncio.ensure_future(part()) for part in parts]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # Before Python 3.12 wait_for can swallow a cancellation, so one is not always enough.
            while running := [task for task in tasks if not task.done()]:
                for task in running:
                    task.cancel()
                await asyncio.wait(running, timeout=1.0)
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Hang up, finish the recording and release everything. Repeating this is harmless."""
        try:
            await self.line.close()
            await asyncio.get_running_loop().run_in_executor(None, self._finish)
        finally:
            try:
                self._sink.close()
            finally:
                self._source.close()

    def statistics(self) -> dict[str, object]:
        """The call so far, under the names of webrtc-stats, ours in "encodecRt"."""
        report, controller = self._report, self._sender.controller
        plan = controller.plan(self._now_s())
        outbound: dict[str, object] = {"type": "outbound-rtp", "kind": "audio"}
        packets, size, dropped = self.line.sent
        if report is not None or self.line.renewals:
            outbound |= {"packetsSent": packets, "bytesSent": size}
        own: dict[str, object] = {
            "framesPerPacket": plan.frames,
            "codebooks": plan.codebooks,
            "redundantFrames": plan.copies,
            "estimatedBitrate": controller.estimate_bps,
            "packetsDroppedBeforeSending": dropped,
            "packetsRefused": self.line.refused,
            "secondsSincePacket": round(self.silent_s, 3),
            "reconnections": self.line.renewals,
            "codecShare": round(self.codec_share, 4),
            "encodeMs": percentiles(self._times.encode_ms),
            "decodeMs": percentiles(self._times.decode_ms),
            "latencyMs": latency_ms(
                self.listener.statistics,
                self._times,
                frames_per_packet=plan.frames,
                round_trip_s=report.round_trip_s if report is not None else None,
            ),
        }
        return {
            "inbound": self.listener.statistics.as_dict(),
            "outbound": outbound,
            "remote": remote_statistics(report),
            "encodecRt": own,
        }

    async def _talk(self) -> None:
        while (audio := await self._source.read()) is not None:
            anew, self._anew = self._anew, False
            frames, active, taken_ms = await self._compute(self._encode, audio, anew)
            self._times.encode_ms.append(taken_ms)
            # Frames encoded for a previous line would corrupt the state of the next one's decoder.
            for codes in () if self._anew else frames:
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
        self.line.transport.send(packet)

    def _encode(self, audio: Audio, anew: bool) -> tuple[Codes, bool, float]:
        started = perf_counter()
        if anew:
            self._encoder.restore(self._encoder_start)
        active = self._detector.is_active(audio) or not self.voice.dtx
        codes = self._encoder.push(audio)
        if self._recording is not None:
            self._recording.say(codes)
        return codes, active, 1000 * (perf_counter() - started)

    def _decode(self, planned: HopPlan) -> tuple[Audio, float]:
        started = perf_counter()
        audio = self.listener.render(planned)
        if self._recording is not None:
            self._recording.hear(planned.slot.codes)
        return audio, 1000 * (perf_counter() - started)

    def _finish(self) -> None:
        self._worker.shutdown()
        if self._recording is not None:
            self._recording.close()

    async def _hear(self) -> None:
        while True:
            wanted_s = await self._sink.ready()
            planned = self.listener.take(wanted_s, clock_s=self._now_s())
            audio, taken_ms = await self._compute(self._decode, planned)
            self._times.decode_ms.append(taken_ms)
            self._sink.write(audio)

    async def _watch(self) -> None:
        """Pass on receiver reports, and end the call when nothing arrives any more."""
        while True:
            await asyncio.sleep(REPORT_S)
            self._report = await self.line.report()
            if self._report is not None:
                self._sender.controller.on_report(
                    self._report.fraction_lost, self._report.round_trip_s, self._now_s()
                )
            if self.silent_s > (self.voice.reconnect_s or self.voice.idle_s):
                raise LinkError(f"nothing came from the other side for {self.silent_s:.0f} s")

    async def _compute(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    def _on_packet(self, packet: Received) -> None:
        if self._heard_s is None:
            # Nobody is listening yet, and what is queued now would delay everything after it.
            return
        now_s = self._now_s()
        self.listener.receive(
            packet.payload,
            sequence=packet.sequence,
            timestamp=packet.timestamp,
            ssrc=packet.ssrc,
            now_s=now_s,
        )
        self._heard_s = now_s

    def _on_renewed(self) -> None:
        """Both sides restart their streams, so encoder and decoder start from the same state."""
        self._sender.restart()
        self._anew = True
        self._renewed_s = self._now_s()
        self.listener.restart()

    def _on_estimate(self, bitrate_bps: float) -> None:
        self._sender.controller.on_estimate(bitrate_bps, self._now_s())

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
