"""The sessions of one engine: their slots, what they resume from, and how they end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from aiohttp import WSCloseCode
from torch import Tensor

from encodec_rt.errors import StateError
from encodec_rt.server.engine_loop import EngineLoop
from encodec_rt.server.host import (
    Client,
    Joined,
    MakeClient,
    Opened,
    ServerFacts,
    Supervisor,
    UnavailableError,
)
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import CloseCode, StreamRequest
from encodec_rt.server.queues import Output, QueuedIntake
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.slot_stream import SlotStream
from encodec_rt.server.store import MAX_UNANSWERED, SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S = 60.0
FRAMES_AT_ONCE = (1, 2, 4)


Made = TypeVar("Made", bound=SlotStream)


class Sessions:
    """Which client has which slot. Everything runs on the event loop unless noted otherwise."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        limits: SessionLimits,
        metrics: Metrics,
    ) -> None:
        """Prepares for up to ``slots`` sessions of up to ``bandwidth_kbps``."""
        packed = codec.packed
        starts = max(packed.encoder_start_frames, packed.decoder_start_frames)
        # The first frames of an exact stream wait together, besides what arrives meanwhile.
        waiting = limits.waiting_frames + (starts if starts > 1 else 0)
        self.limits = replace(limits, waiting_frames=waiting)
        self.config, self._store, self._metrics = codec.config, store, metrics
        self.slots, self.bandwidth_kbps = slots, bandwidth_kbps
        self.facts = ServerFacts(
            codec.name, codec.weights_sha256, codec.config, packed.encoder_start_frames,
            packed.decoder_start_frames, slots, bandwidth_kbps, self.limits,
        )  # fmt: skip
        self.is_draining = False
        engine = codec.engine(slots, bandwidth_kbps, gather=codec.device.type == "cpu")
        engine.prewarm(FRAMES_AT_ONCE)
        self._silence = codec.stream_decoder(bandwidth_kbps).silence_latent()
        self.engine_loop = EngineLoop(
            engine, self._hand_over, self._save, metrics, limits.snapshot_s
        )
        self._free = list(range(slots))
        self._clients: dict[int, Client] = {}
        self._taken: dict[int, int] = {}
        """The slots of sessions that were opened, by their keys."""
        self._intakes: dict[int, QueuedIntake] = {}
        self._opened = 0
        self._saving: set[int] = set()
        """Clients whose state is on its way to the disk."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="encodec-rt-store")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: list[asyncio.Task[None]] = []

    @property
    def count(self) -> int:
        """Slots that are taken."""
        return self.slots - len(self._free)

    def start(self) -> None:
        """Step the engine from now on."""
        self._loop = asyncio.get_running_loop()
        self.engine_loop.start()
        watching = Supervisor(self._clients, self.limits).run(), self._expire()
        self._watching = [asyncio.create_task(each) for each in watching]

    async def close(self) -> None:
        """End all sessions; they can be resumed."""
        self.is_draining = True
        for each in self._watching:
            each.cancel()
        for client in list(self._clients.values()):
            await client.close(WSCloseCode.GOING_AWAY, "the server ends")
        while self.count:
            await asyncio.sleep(0.001)
        self.engine_loop.stop()
        self._writer.shutdown()

    async def drain(self) -> None:
        """Let the sessions end in time, and close those that are left, which can be resumed."""
        self.is_draining = True
        loop, seconds = asyncio.get_running_loop(), self.limits.drain_s
        logger.info("draining %d sessions for up to %g s", self.count, seconds)
        for client in list(self._clients.values()):
            client.send_event("Draining", seconds=seconds)
        until_s = loop.time() + seconds
        while self._clients and loop.time() < until_s:
            await asyncio.sleep(0.05)
        left = list(self._clients.values())
        for client in left:
            await client.close(WSCloseCode.SERVICE_RESTART, "the server restarts; resume")
            await asyncio.sleep(self.limits.close_over_s / len(left))

    def reserve(self) -> int:
        """Reserve a slot until ``release``, without waiting.

        Raises UnavailableError.
        """
        if self.is_draining or not self.engine_loop.is_alive:
            raise UnavailableError("draining")
        if not self._free:
            raise UnavailableError("full")
        slot = self._free.pop()
        self._metrics.sessions.set(self.count)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)
        self._metrics.sessions.set(self.count)

    async def open(
        self, wanted: StreamRequest, resume: str | None, make: MakeClient[Joined]
    ) -> tuple[Joined, Opened]:
        """As ``SessionHost.open``."""
        if resume is not None:
            await self._supersede(resume)
        slot = self.reserve()
        try:
            state = None if resume is None else await self._load(resume, wanted)
            key, token = self.new_key(), resume or secrets.token_urlsafe(24)
            intake = QueuedIntake(self.limits.waiting_frames, self.engine_loop.wake)
            client = make(key, token, intake)

            def make_stream(silence: Tensor, engine: Engine) -> SlotStream:
                stream = SlotStream(key, slot, wanted, intake.pcm, intake.codes, engine, silence)
                if state is not None:
                    stream.resume(state.slot, state.progress)
                return stream

            self._intakes[key] = intake
            try:
                stream = await self.join(client, make_stream)
            except BaseException:
                del self._intakes[key]
                raise
        except BaseException:
            self.release(slot)
            raise
        self._taken[key] = slot
        return client, Opened(stream.progress, stream.books)

    async def end(self, client: Client) -> None:
        """As ``SessionHost.end``."""
        try:
            await self.leave(client)
        finally:
            self._intakes.pop(client.key, None)
            self.release(self._taken.pop(client.key))

    async def _load(self, token: str, wanted: StreamRequest) -> SessionState:
        """The newest state after which the client lacks nothing. Raises StateError."""
        found = await asyncio.wrap_future(self._writer.submit(self._store.find, token, wanted))
        if found is None:
            raise StateError("there is no such session to resume; open a new one")
        return found

    def new_key(self) -> int:
        """A key for another client."""
        self._opened += 1
        return self._opened

    async def join(self, client: Client, make: Callable[[Tensor, Engine], Made]) -> Made:
        """Step a client's session from now on, on a reserved slot.

        ``make`` is called on the engine's thread, with the latent of silence and the engine. Raises
        StateError if ``make`` fails or the engine has ended.
        """
        adding = self.engine_loop.add(partial(make, self._silence))
        try:
            stream = await asyncio.wrap_future(adding)
        except asyncio.CancelledError:
            self.engine_loop.remove(client.key)
            raise
        self._clients[client.key] = client
        return stream

    async def leave(self, client: Client) -> None:
        """End a session; save what its client may come back for. Its slot stays reserved."""
        self._clients.pop(client.key, None)
        now_s = asyncio.get_running_loop().time()
        self._metrics.session_seconds.observe(now_s - client.opened_s)
        self._metrics.closed.labels(str(client.code)).inc()
        logger.info(
            "session %d ended with %s after %.1f s", client.key, client.code,
            now_s - client.opened_s,
        )  # fmt: skip
        try:
            state = await asyncio.wrap_future(self.engine_loop.remove(client.key))
        except StateError:
            # The engine has died; only what was saved before is left.
            state = None
        if client.token is not None and client.code == WSCloseCode.OK:
            self._writer.submit(self._store.forget, client.token)
        elif client.token is not None and state is not None:
            future = self._writer.submit(self._store.save, client.token, state)
            await asyncio.wrap_future(future)
        client.ended.set()

    async def _supersede(self, token: str) -> None:
        """Close a session that is still open and whose client has come back."""
        for client in list(self._clients.values()):
            own = (client.token or "").encode()
            if secrets.compare_digest(own, token.encode()):
                client.code = CloseCode.SUPERSEDED
                await client.close(CloseCode.SUPERSEDED, "resumed by another connection")
                await client.ended.wait()
                # Its slot is released when its handler returns.
                await asyncio.sleep(0)

    def _hand_over(self, outputs: list[Output]) -> None:
        """Called on the engine's thread."""
        assert self._loop is not None, "the engine starts with the server"
        self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            client = self._clients.get(output.key)
            if client is not None:
                client.deliver(output)

    def _save(self, key: int, state: SessionState) -> None:
        """Called on the engine's thread; the client is told when it is on disk."""
        client, intake = self._clients.get(key), self._intakes.get(key)
        # If the disk lags behind, states whose writing has not begun are skipped.
        if client is None or client.token is None or intake is None or key in self._saving:
            return
        # More would displace the last one from which a slow client can resume.
        if intake.answered and intake.saved - intake.answered >= MAX_UNANSWERED:
            return
        intake.saved += 1
        self._saving.add(key)
        token, progress = client.token, state.progress
        fields = {"frame": progress.encoded, "decoded": progress.decoded}
        output = Output(key, event="Snapshot", fields=fields)

        def save() -> None:
            try:
                self._store.save(token, state)
            finally:
                self._saving.discard(key)
            self._hand_over([output])

        self._writer.submit(save)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            self._writer.submit(self._store.expire)
