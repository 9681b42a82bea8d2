"""A served call over WebRTC: the far side hears itself, decoded and encoded again by a slot."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import WSCloseCode
from torch import Tensor

from encodec_rt.link.endpoints import Clock
from encodec_rt.link.peer_transport import NegotiatedTransport
from encodec_rt.link.sdp import Format, is_for_channel
from encodec_rt.link.transports import make_transport
from encodec_rt.server.call_stream import CallStream, WaitingHop
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.queues import FrameQueue, Output
from encodec_rt.server.sessions import Sessions
from encodec_rt.streaming.engine import Engine
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.call import REPORT_S
from encodec_rt.voice.line import Line
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.sender import Sender
from encodec_rt.voice.transport import Received

HANDSHAKE_S = 15.0
HOPS_AHEAD = 2
"""The most hops of one call that the engine may have at once; fewer than its queues hold."""
LOST_S = 5.0
"""After this much silence the caller counts as gone, and may be the one that calls again."""


class ServedCall:
    """One call on a reserved slot; as signalling and as ``Sessions`` see it.

    It cannot be resumed with a token: a caller whose path breaks offers another one for the same
    call, on which both directions restart.
    """

    def __init__(self, sessions: Sessions, slot: int, form: Format, metrics: Metrics) -> None:
        """Create it inside the event loop. It releases ``slot``, however it ends."""
        self.key = sessions.new_key()
        self.token: str | None = None
        self.blocked_since_s: float | None = None
        self.opened_s = self.heard_s = self._now_s()
        self.code: int | None = None
        self.ended = asyncio.Event()
        self._sessions, self._form, self._metrics = sessions, form, metrics
        self._slot: int | None = slot
        self._stream: CallStream | None = None
        self._line: Line | None = None
        waiting = sessions.limits.waiting_frames
        self._pcm, self._hops = FrameQueue(waiting), FrameQueue(waiting)
        self._room = asyncio.Semaphore(HOPS_AHEAD)
        controller = RateController(
            codebooks=form.codebooks, bits=form.bits, frame_rate_hz=1 / self._hop_s
        )
        self._sender = Sender(sessions.config, controller, self._send)
        self._count = self._fresh_from = 0
        """Hops given to the engine so far, and the first one after the last renewal."""
        self._adopting: asyncio.Task[None] | None = None
        self._running = False

    async def answer(self, offer: str) -> str:
        """As ``SignalledCall.answer``."""
        transport = self._transport_for(offer)
        self._line = Line(transport, self._on_packet, self._on_estimate, self._on_renewed)
        answer, codebooks = await transport.answer(offer)
        self._sender.limit(codebooks)
        return answer

    @property
    def is_lost(self) -> bool:
        """As ``SignalledCall.is_lost``."""
        return self._now_s() - self.heard_s > LOST_S

    async def renew(self, offer: str) -> str:
        """As ``SignalledCall.renew``."""
        transport = self._transport_for(offer)
        self.line.propose(transport)
        answer, codebooks = await transport.answer(offer)
        self._adopting = asyncio.ensure_future(self._adopt(transport, codebooks))
        return answer

    @property
    def line(self) -> Line:
        """What carries the call, once it has been answered."""
        assert self._line is not None, "an answer comes first"
        return self._line

    async def run(self) -> None:
        """As ``SignalledCall.run``."""
        if self._slot is None:
            return
        self._running = True
        try:
            await self.line.connect(HANDSHAKE_S)
            await self._serve(self._slot)
        finally:
            await self.line.close()
            self._give_back()

    async def close(self, code: int = WSCloseCode.OK, reason: str = "") -> None:
        """Hang up. Repeating this is harmless."""
        self.code = self.code or code
        if self._adopting is not None:
            self._adopting.cancel()
        if self._line is not None:
            await self._line.close()
        if not self._running:
            self._give_back()

    def cut(self) -> None:
        """Never called: a call sends nothing that waits."""

    def send_event(self, name: str, **fields: object) -> None:
        """A call cannot carry events."""

    def deliver(self, output: Output) -> None:
        """Send a frame of codes back."""
        self._room.release()
        # Frames encoded for a previous line would corrupt the state of the next one's decoder.
        if output.codes is not None and output.index >= self._fresh_from:
            self._metrics.frames.labels("out").inc()
            self._sender.push(output.codes, self._now_s(), active=output.active)

    async def _serve(self, slot: int) -> None:
        self._stream = await self._sessions.join(self, partial(self._make_stream, slot))
        self.heard_s = self._now_s()
        parts = (self._hear, self._report, self._wait_ended)
        tasks = [asyncio.ensure_future(part()) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.code = self.code or WSCloseCode.OK
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._sessions.leave(self)

    def _make_stream(self, slot: int, silence: Tensor, engine: Engine) -> CallStream:
        """Called on the engine's thread."""
        kbps = self._sessions.bandwidth_kbps
        return CallStream(self.key, slot, kbps, self._pcm, self._hops, engine, silence)

    async def _hear(self) -> None:
        """Give the engine a hop of playout whenever one is due."""
        assert self._stream is not None, "a call is heard once it has a stream"
        receiver, clock = self._stream.receiver, Clock(self._hop_s)
        while True:
            due_s = await clock.tick()
            # Catching up faster than hops are decoded would outrun the packets that have arrived.
            await self._room.acquire()
            now_s = self._now_s()
            plan = receiver.take(due_s, clock_s=now_s)
            if plan.slot.kind == "idle":
                self._room.release()
                continue
            self._metrics.frames.labels("in").inc()
            self._hops.put(WaitingHop(self._count, None, now_s, plan))
            self._count += 1
            self._sessions.engine_loop.wake()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            report = await self.line.report()
            if report is not None:
                self._sender.controller.on_report(
                    report.fraction_lost, report.round_trip_s, self._now_s()
                )

    async def _wait_ended(self) -> None:
        await self.line.wait_ended(patient=True)

    async def _adopt(self, transport: NegotiatedTransport, codebooks: int) -> None:
        if await self.line.follow(transport, HANDSHAKE_S):
            self._sender.limit(codebooks)

    def _transport_for(self, offer: str) -> NegotiatedTransport:
        return make_transport(self._form, over_channel=is_for_channel(offer))

    def _send(self, packet: Outgoing, now_s: float) -> None:
        self.line.transport.send(packet)

    def _on_packet(self, packet: Received) -> None:
        if self._stream is None:
            return
        now_s = self._now_s()
        self._stream.receiver.receive(
            packet.payload,
            sequence=packet.sequence,
            timestamp=packet.timestamp,
            ssrc=packet.ssrc,
            now_s=now_s,
        )
        self.heard_s = now_s

    def _on_renewed(self) -> None:
        """Both sides restart, so that encoder and decoder start from the same state."""
        self._sender.restart()
        self._fresh_from = self._count
        if self._stream is not None:
            self._stream.receiver.restart()
            self._stream.renewed_at = self._count

    def _on_estimate(self, bitrate_bps: float) -> None:
        self._sender.controller.on_estimate(bitrate_bps, self._now_s())

    def _give_back(self) -> None:
        if self._slot is not None:
            self._sessions.release(self._slot)
            self._slot = None
        self.ended.set()

    @property
    def _hop_s(self) -> float:
        return self._form.hop / self._form.rate_hz

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
