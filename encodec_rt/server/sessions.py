"""The sessions of one engine: on which slot, resumed from what, and how they end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, web

from encodec_rt.errors import ConfigError, StateError
from encodec_rt.server.connection import Connection
from encodec_rt.server.engine_loop import EngineLoop
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import MAX_MESSAGE_BYTES, SUBPROTOCOL, CloseCode, StreamRequest
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.slot_stream import Output, SlotStream
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S = 60.0
SEND_BUFFER_BYTES = 64 * 1024
"""In the system and in the process, each: a client that does not read is then noticed in time."""
FRAMES_AT_ONCE = (1, 2, 4)


class Sessions:
    """Who is on which slot. Everything here runs on the event loop, unless it says otherwise."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        limits: SessionLimits,
        metrics: Metrics,
    ) -> None:
        """Up to ``slots`` sessions of up to ``bandwidth_kbps``; makes all that they need."""
        packed = codec.packed
        starts = max(packed.encoder_start_frames, packed.decoder_start_frames)
        # What an exact stream begins with waits as a whole, beside what comes in meanwhile.
        waiting = limits.waiting_frames + (starts if starts > 1 else 0)
        self._limits = replace(limits, waiting_frames=waiting)
        self._codec, self._config, self._store, self._metrics = codec, codec.config, store, metrics
        self.slots, self.bandwidth_kbps = slots, bandwidth_kbps
        engine = codec.engine(slots, bandwidth_kbps, gather=codec.device.type == "cpu")
        engine.prewarm(FRAMES_AT_ONCE)
        self._silence = codec.stream_decoder(bandwidth_kbps).silence_latent()
        self.engine_loop = EngineLoop(
            engine, self._hand_over, self._save, metrics, limits.snapshot_s
        )
        self._free = list(range(slots))
        self._connections: dict[int, Connection] = {}
        self._opened = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="encodec-rt-store")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Slots that are taken."""
        return self.slots - len(self._free)

    def start(self) -> None:
        """Step the engine from now on."""
        self._loop = asyncio.get_running_loop()
        self.engine_loop.start()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End all sessions; they can be resumed."""
        if self._watching is not None:
            self._watching.cancel()
        for connection in list(self._connections.values()):
            await connection.close(WSCloseCode.GOING_AWAY, "the server ends")
        while self.count:
            await asyncio.sleep(0.001)
        self.engine_loop.stop()
        self._writer.shutdown()

    async def drain(self) -> None:
        """Let the sessions end in their time, and close those that are left, to be resumed."""
        loop, seconds = asyncio.get_running_loop(), self._limits.drain_s
        logger.info("draining %d sessions for up to %g s", self.count, seconds)
        for connection in list(self._connections.values()):
            connection.tell("Draining", seconds=seconds)
        until_s = loop.time() + seconds
        while self._connections and loop.time() < until_s:
            await asyncio.sleep(0.05)
        left = list(self._connections.values())
        for connection in left:
            await connection.close(WSCloseCode.SERVICE_RESTART, "the server restarts; resume")
            await asyncio.sleep(self._limits.close_over_s / len(left))

    def check(self, wanted: StreamRequest) -> None:
        """Raise ConfigError for a bandwidth that is not served."""
        books = self._config.codebooks_for(wanted.bandwidth_kbps)
        if books > self._config.codebooks_for(self.bandwidth_kbps):
            raise ConfigError(
                f"bandwidth={wanted.bandwidth_kbps:g}; this server has up to "
                f"{self.bandwidth_kbps:g} kbps"
            )

    def reserve(self) -> int | None:
        """A slot that is nobody else's until ``release``, or None. It waits for nothing."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._metrics.sessions.set(self.count)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)
        self._metrics.sessions.set(self.count)

    async def load(self, token: str, wanted: StreamRequest) -> SessionState:
        """The newest state after which the client lacks nothing. Raises StateError."""
        states = await asyncio.wrap_future(self._writer.submit(self._store.load, token))
        for state in states:
            if state.is_for(wanted):
                return state
        raise StateError("there is no such session to resume; begin a new one")

    async def serve(
        self,
        request: web.Request,
        transport: asyncio.Transport,
        wanted: StreamRequest,
        slot: int,
        resumed: tuple[str, SessionState] | None,
    ) -> web.StreamResponse:
        """A session from its opening to its end, on a slot that was reserved.

        Raises StateError for a state of another model, before anything is answered.
        """
        response = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20.0,
            compress=False, timeout=1.0,
        )  # fmt: skip
        if not response.can_prepare(request).ok:
            raise StateError("this address is for WebSockets")
        self._opened += 1
        now_s = asyncio.get_running_loop().time()
        token, state = resumed or (secrets.token_urlsafe(24), None)
        connection = Connection(
            self._opened, slot, token, wanted, response, transport, self._config, self._limits,
            self._metrics, self.engine_loop.wake, now_s,
        )  # fmt: skip
        make = partial(self._make_stream, connection, state)
        stream = await asyncio.wrap_future(self.engine_loop.add(make))
        connection.begin(stream.progress)
        self._connections[connection.key] = connection
        try:
            await response.prepare(request)
            _limit_buffers(transport)
            connection.tell("Welcome", **self._welcome(connection, stream))
            await connection.run()
        finally:
            await self._end(connection)
        return response

    def _make_stream(
        self, connection: Connection, state: SessionState | None, engine: Engine
    ) -> SlotStream:
        """On the engine's thread."""
        stream = SlotStream(
            connection.key, connection.slot, connection.request, connection.pcm,
            connection.codes, engine, self._silence,
        )  # fmt: skip
        if state is not None:
            stream.resume(state.slot, state.progress)
        return stream

    def _welcome(self, connection: Connection, stream: SlotStream) -> dict[str, object]:
        config, weights = self._config, self._codec.packed
        return {
            "resume": connection.token,
            "frame": stream.progress.encoded,
            "decoded": stream.progress.decoded,
            "codebooks": stream.books,
            "bits": config.codebook_nbits,
            "hop": config.hop_length,
            "rate": config.sampling_rate,
            "channels": config.audio_channels,
            "encoder_start_frames": weights.encoder_start_frames,
            "decoder_start_frames": weights.decoder_start_frames,
            "weights_sha256": weights.sha256,
        }

    async def _end(self, connection: Connection) -> None:
        """Free the slot; keep what the client may come back for."""
        self._connections.pop(connection.key, None)
        now_s = asyncio.get_running_loop().time()
        self._metrics.session_seconds.observe(now_s - connection.opened_s)
        self._metrics.closed.labels(str(connection.code)).inc()
        logger.info(
            "session %d ended with %s after %.1f s", connection.key, connection.code,
            now_s - connection.opened_s,
        )  # fmt: skip
        try:
            state = await asyncio.wrap_future(self.engine_loop.remove(connection.key))
        except StateError:
            # The engine has died; what was kept before is what there is.
            state = None
        ended = connection.code == WSCloseCode.OK
        if ended:
            self._writer.submit(self._store.forget, connection.token)
        elif state is not None:
            future = self._writer.submit(self._store.save, connection.token, state)
            await asyncio.wrap_future(future)
        connection.ended.set()

    async def supersede(self, token: str) -> None:
        """Close a session that is still open and whose client has come back."""
        for connection in list(self._connections.values()):
            if secrets.compare_digest(connection.token.encode(), token.encode()):
                connection.code = CloseCode.SUPERSEDED
                await connection.close(CloseCode.SUPERSEDED, "resumed by another connection")
                await connection.ended.wait()
                # Its slot is given back as its handler returns.
                await asyncio.sleep(0)

    def _hand_over(self, outputs: list[Output]) -> None:
        """Called on the engine's thread."""
        assert self._loop is not None, "the engine starts with the server"
        self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            connection = self._connections.get(output.key)
            if connection is not None:
                connection.deliver(output)

    def _save(self, key: int, state: SessionState) -> None:
        """Called on the engine's thread; the client hears of it when it is on disk."""
        connection = self._connections.get(key)
        if connection is None or self._loop is None:
            return
        token, progress = connection.token, state.progress
        fields = {"frame": progress.encoded, "decoded": progress.decoded}
        told = Output(key, event="Snapshot", fields=fields)

        def save() -> None:
            self._store.save(token, state)
            self._hand_over([told])

        self._writer.submit(save)

    async def _watch(self) -> None:
        """Once in a while: who is silent, who does not read, who has been here too long."""
        loop = asyncio.get_running_loop()
        expired_s = loop.time()
        while True:
            await asyncio.sleep(min(0.25, self._limits.silent_s / 4))
            now_s = loop.time()
            for connection in list(self._connections.values()):
                since_s = connection.blocked_since_s
                if since_s is not None and now_s - since_s > self._limits.slow_s:
                    connection.code = CloseCode.SLOW
                    connection.cut()
                elif now_s - connection.heard_s > self._limits.silent_s:
                    self._begin(connection.close(CloseCode.SILENT, "nothing was heard"))
                elif now_s - connection.opened_s > self._limits.session_s:
                    self._begin(connection.close(CloseCode.TOO_LONG, "the time is up"))
            if now_s - expired_s > EXPIRE_EVERY_S:
                expired_s = now_s
                self._writer.submit(self._store.expire)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _limit_buffers(transport: asyncio.Transport) -> None:
    transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
