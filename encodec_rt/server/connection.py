"""One client's WebSocket: its input goes to the queues, the engine's output goes out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from encodec_rt.bitstream.packet import Packet, parse_packet
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import CodecError, InputError, PacketError
from encodec_rt.server.host import Intake
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import (
    MAX_FRAME,
    CloseCode,
    Kind,
    StreamRequest,
    pack_event,
    parse_event,
    parse_message,
)
from encodec_rt.server.queues import ClipEnd, Loss, Output, PcmFramer, Progress, WaitingFrame
from encodec_rt.types import Codes
from encodec_rt.voice.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

MAX_EVENTS = 64
"""The most events that wait for a client that does not read."""
ANSWER_S = 1.0
"""For a client to answer that it has read the close."""


class Connection:
    """A session on the network's side. Everything here runs on the event loop."""

    def __init__(
        self,
        key: int,
        token: str,
        request: StreamRequest,
        socket: web.WebSocketResponse,
        transport: asyncio.WriteTransport,
        config: EncodecConfig,
        limits: SessionLimits,
        metrics: Metrics,
        intake: Intake,
        now_s: float,
    ) -> None:
        """``token`` resumes the session; ``intake`` passes its frames to the engine."""
        self.key, self.request = key, request
        self.token: str | None = token
        self.opened_s = self.heard_s = now_s
        self.blocked_since_s: float | None = None
        self.code: int | None = None
        """Why it was closed, once it is."""
        self._transport = transport
        self._socket, self._config, self._limits, self._metrics = socket, config, limits, metrics
        self._intake = intake
        self._books = config.codebooks_for(request.bandwidth_kbps)
        self._framer = PcmFramer(config.hop_length, config.audio_channels)
        self._next_codes = 0
        self._out: dict[Kind, deque[Output]] = {kind: deque() for kind in Kind}
        self._order: deque[Kind | None] = deque()
        self._events: deque[Output] = deque()
        self._something = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None
        self._ends_pending = 0
        self._closing = self._hanging_up = False
        self._hung_up = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when its slot is free and its state is saved."""
        self._messages = TokenBucket(limits.messages_per_s, limits.message_burst)
        self._texts = TokenBucket(limits.events_per_s, limits.event_burst)
        self._errors = TokenBucket(limits.errors_per_s, limits.error_burst)

    def begin(self, progress: Progress) -> None:
        """Expect the frames after ``progress``."""
        self._framer.skip_to(progress.encoded)
        self._next_codes = progress.decoded

    async def run(self) -> None:
        """Serve until either side closes."""
        self._receiver = asyncio.create_task(self._receive())
        sender = asyncio.create_task(self._send())
        try:
            await asyncio.wait({self._receiver})
            if not self._receiver.cancelled():
                self._receiver.result()
        finally:
            if self._hanging_up:
                # Returning to aiohttp earlier would cut off the client's answer.
                await asyncio.wait(
                    {asyncio.ensure_future(self._hung_up.wait())}, timeout=2 * ANSWER_S
                )
            for task in (self._receiver, sender):
                task.cancel()
            self.code = self.code or self._socket.close_code or WSCloseCode.ABNORMAL_CLOSURE

    async def _receive(self) -> None:
        async for message in self._socket:
            now_s = asyncio.get_running_loop().time()
            self.heard_s = now_s
            if not self._messages.allows(now_s):
                await self.close(CloseCode.FLOOD, "too many messages")
                break
            try:
                if message.type == WSMsgType.BINARY:
                    self._take(message.data, now_s)
                elif not self._texts.allows(now_s):
                    await self.close(CloseCode.FLOOD, "too many events")
                    break
                else:
                    self._obey(message.data)
            except CodecError as error:
                if not self._errors.allows(now_s):
                    await self.close(CloseCode.MALFORMED, "too many errors")
                    break
                self.send_event("Error", error=type(error).__name__, message=str(error))

    async def close(self, code: int, reason: str) -> None:
        """Hang up, without waiting long for a client that does not answer."""
        if self._hanging_up:
            await self._hung_up.wait()
            return
        self.code, self._hanging_up = self.code or code, True
        try:
            await self._stop_receiving()
            closing = self._socket.close(code=code, message=reason.encode())
            await asyncio.wait_for(closing, ANSWER_S)
        except (asyncio.TimeoutError, ConnectionError, RuntimeError):
            self.cut()
        finally:
            self._hung_up.set()

    async def _stop_receiving(self) -> None:
        """While another task receives, aiohttp closes without waiting for the client's answer."""
        if self._receiver is not None and self._receiver is not asyncio.current_task():
            self._receiver.cancel()
            await asyncio.wait({self._receiver})

    def cut(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def send_event(self, name: str, **fields: object) -> None:
        """Send an event after those before it."""
        self.deliver(Output(self.key, event=name, fields=fields))

    def deliver(self, output: Output) -> None:
        """Send ``output``; if too many frames of its kind wait, the oldest is dropped."""
        if output.data is None:
            self._deliver_event(output)
        else:
            kind = Kind(output.data[0])
            waiting = self._out[kind]
            if len(waiting) >= self._limits.waiting_frames:
                self.lose("out", Loss(waiting.popleft().index, 1))
                self._order.remove(kind)
            waiting.append(output)
            self._order.append(kind)
        self._something.set()

    def _deliver_event(self, output: Output) -> None:
        if output.event == "Finalized":
            self._ends_pending -= 1
        if len(self._events) >= MAX_EVENTS:
            self.code = CloseCode.SLOW
            self.cut()
            return
        self._events.append(output)
        self._order.append(None)

    def lose(self, where: str, loss: Loss | None) -> None:
        """Report dropped frames, consecutive ones as one event."""
        if loss is None:
            return
        self._metrics.dropped.labels(where).inc(loss.count)
        last = self._events[-1] if self._events else None
        if last is not None and last.event == "Dropped" and last.fields["where"] == where:
            fields = last.fields
            if fields["first"] + fields["count"] == loss.first:
                fields["count"] += loss.count
                return
        self.send_event("Dropped", where=where, first=loss.first, count=loss.count)

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._something.wait()
            self._something.clear()
            while self._order:
                kind = self._order.popleft()
                self.blocked_since_s = loop.time()
                try:
                    await self._send_one(kind)
                except ConnectionError:
                    return
                self.blocked_since_s = None
            if self._closing and not self._ends_pending:
                await self.close(WSCloseCode.OK, "the stream has ended")
                return

    async def _send_one(self, kind: Kind | None) -> None:
        if kind is None:
            event = self._events.popleft()
            await self._socket.send_str(pack_event(event.event, **event.fields))
            return
        output = self._out[kind].popleft()
        assert output.data is not None, "what has a kind has bytes"
        self._metrics.frames.labels("out").inc()
        await self._socket.send_bytes(output.data)

    def _obey(self, text: str) -> None:
        event = parse_event(text)
        name = event["type"]
        if name in ("Finalize", "CloseStream"):
            self._end_clip()
            self._closing = self._closing or name == "CloseStream"
        elif name == "Kept":
            self._intake.kept()
        elif name != "KeepAlive":
            raise PacketError(
                "an event of another type than KeepAlive, Kept, Finalize, CloseStream"
            )

    def _end_clip(self) -> None:
        if self._closing:
            raise PacketError("the stream was closed")
        if self.request.encodes:
            self.lose("in", self._intake.pcm.put(self._framer.finish()))
            self._ends_pending += 1
        if self.request.decodes:
            rest = np.zeros((self._config.audio_channels, 0), np.int16)
            self.lose("in", self._intake.codes.put(ClipEnd(self._next_codes, rest)))
            self._ends_pending += 1
        self._intake.wake()

    def _take(self, data: bytes, now_s: float) -> None:
        if self._closing:
            raise PacketError("the stream was closed; nothing may follow CloseStream")
        kind, index, payload = parse_message(data)
        if kind == Kind.PCM:
            self._take_pcm(index, payload, now_s)
        else:
            self._take_codes(index, payload, now_s)
        self._intake.wake()

    def _take_pcm(self, index: int, payload: bytes, now_s: float) -> None:
        if not self.request.encodes:
            raise InputError(f"audio for a stream of mode {self.request.mode}, which takes codes")
        whole = 2 * self._config.audio_channels
        if len(payload) % whole:
            raise InputError(f"{len(payload)} bytes of audio; a sample takes {whole}")
        _check_last(index + len(payload) // (whole * self._config.hop_length) + 1)
        if index < self._framer.index:
            raise InputError(f"audio of frame {index}; frame {self._framer.index} comes next")
        if index > self._framer.index:
            self._framer.skip_to(index)
        for frame in self._framer.push(payload, now_s):
            self._metrics.frames.labels("in").inc()
            self.lose("in", self._intake.pcm.put(frame))

    def _take_codes(self, index: int, payload: bytes, now_s: float) -> None:
        if not self.request.decodes:
            raise InputError(f"codes for a stream of mode {self.request.mode}, which takes audio")
        bits = self._config.codebook_nbits
        packet = parse_packet(payload, bits=bits, max_codebooks=self._books)
        _check_last(index + len(packet.codes))
        if index + len(packet.codes) <= self._next_codes:
            raise InputError(f"codes of frame {index}; frame {self._next_codes} comes next")
        # Only the end of a longer gap could be played.
        known = _by_index(packet, index)
        first = max(self._next_codes, index - self._limits.waiting_frames)
        for at in range(first, index + len(packet.codes)):
            self._metrics.frames.labels("in").inc()
            self.lose("in", self._intake.codes.put(WaitingFrame(at, known.get(at), now_s)))
        self._next_codes = index + len(packet.codes)


def _check_last(index: int) -> None:
    if index > MAX_FRAME:
        raise InputError(f"frame {index}; a stream has at most {MAX_FRAME} frames, so open another")


def _by_index(packet: Packet, index: int) -> dict[int, Codes]:
    """A packet's frames, and the coarse copies of earlier ones, by their numbers."""
    frames: dict[int, Codes] = {}
    if packet.redundancy is not None:
        first = index - packet.redundancy.back
        frames |= {first + at: codes for at, codes in enumerate(packet.redundancy.codes)}
    return frames | {index + at: codes for at, codes in enumerate(packet.codes)}
