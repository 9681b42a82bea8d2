"""A client of ``encodec-rt serve``: audio or codes in, codes or audio out, across restarts.

    async with StreamClient("http://127.0.0.1:8445", mode="encode") as stream:
        await stream.send_audio(samples)
        await stream.finish()
        async for frame in stream:
            print(frame.index, frame.codes)

A lost connection is opened again and the session resumed: what the server had not saved is sent
again, and results that had already arrived are skipped, so no frame is missing or comes twice.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

import aiohttp
import numpy as np

from encodec_rt.arrays import check_audio
from encodec_rt.client.connector import Connector
from encodec_rt.client.flow import Flow
from encodec_rt.client.opening import (
    ENDS,
    Dropped,
    ServedFrame,
    dropped_by,
    pack_codes,
    place_of,
    send_if_open,
    unpack_frame,
    whole_number,
)
from encodec_rt.client.sent import SentAudio, SentCodes
from encodec_rt.errors import InputError, LinkError, PacketError, StateError
from encodec_rt.pcm import to_int16
from encodec_rt.server.protocol import (
    Kind,
    Mode,
    StreamRequest,
    pack_event,
    pack_message,
    parse_event,
    parse_message,
)
from encodec_rt.types import Audio, Codes

KEEP_ALIVE_S = 3.0


class StreamClient:
    """One stream. Sending waits while too much is in flight, so that nothing is dropped."""

    def __init__(
        self,
        url: str,
        *,
        mode: Mode = "echo",
        bandwidth_kbps: float = 6.0,
        start: Literal["primed", "exact", "zero"] = "primed",
        token: str | None = None,
        ticket: str | None = None,
        context: ssl.SSLContext | aiohttp.Fingerprint | None = None,
        placed: bool = False,
        live: bool = False,
        retry_s: float = 30.0,
    ) -> None:
        """``url`` is http(s)://HOST:PORT; anything else raises LinkError. With ``live``, sending
        waits for nothing but a lost connection, and frames may be dropped.

        With ``placed``, ``url`` is a placer's, which names a server whenever one is needed. A lost
        connection is retried for ``retry_s``; a full server too.
        """
        self.request = StreamRequest(mode, bandwidth_kbps, start)
        self.dropped: list[Dropped] = []
        self.errors: list[str] = []
        """What the server refused, in its words."""
        self.resumed = 0
        """How often the stream was resumed."""
        self.welcome: dict[str, Any] = {}
        self._live = live
        self._connector = Connector(
            place_of(url, context), placed=placed, token=token, ticket=ticket, retry_s=retry_s
        )
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._received: asyncio.Queue[ServedFrame | Exception | None] = asyncio.Queue()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pcm = SentAudio()
        self._codes = SentCodes()
        self._flow = Flow(self.request)
        self._connected = asyncio.Event()
        self._repeating: asyncio.Task[None] | None = None
        self._finishing = self._ended = False
        self._finalized = 0

    async def __aenter__(self) -> StreamClient:
        """Connect. Raises LinkError."""
        self._connector.open()
        try:
            await self._connect()
        except BaseException:
            await self._connector.close()
            raise
        self._connected.set()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *args: object) -> None:
        """Hang up; results that have not arrived are lost."""
        # Before Python 3.12 wait_for can swallow a cancellation, so one is not always enough.
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        await self._connector.close()

    async def send_audio(self, audio: Audio) -> None:
        """Samples float32 [n] or [channels, n]. Raises InputError, and StateError when finished."""
        self._check_open()
        if not self.request.encodes:
            raise InputError(f"audio for a stream of mode {self.request.mode}; it takes codes")
        checked = check_audio(audio, self.welcome["channels"])
        pcm = np.ascontiguousarray(to_int16(checked).T).astype("<i2").tobytes()
        step = 2 * self._pcm.frame_samples
        for at in range(0, len(pcm), step):
            await self._room()
            index, message = self._pcm.add(pcm[at : at + step])
            await self._send(Kind.PCM, index, message)

    async def send_codes(self, codes: Codes | None) -> None:
        """A frame's codes uint16 [Q], None for a lost one. Raises as ``send_audio`` does."""
        self._check_open()
        if not self.request.decodes:
            raise InputError(f"codes for a stream of mode {self.request.mode}; it takes audio")
        payload = None if codes is None else pack_codes(codes, self.welcome)
        await self._room()
        index = self._codes.add(payload)
        if payload is not None:
            await self._send(Kind.CODES, index, payload)

    async def finish(self) -> None:
        """End the input; the remaining results follow, and then the stream ends."""
        self._check_open()
        self._finishing = True
        if self._connected.is_set():
            await self._send_event("CloseStream")

    def __aiter__(self) -> AsyncIterator[ServedFrame]:
        """The frames as they arrive, until the stream has ended. Raises LinkError."""
        return self

    async def __anext__(self) -> ServedFrame:
        item = await self._received.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def _check_open(self) -> None:
        if self._finishing or self._ended or not self.welcome:
            raise StateError("this stream is finished, or was not opened; use another 'async with'")

    async def _room(self) -> None:
        """Wait until there is a connection, and not too much is in flight."""
        while not self._ended:
            await self._connected.wait()
            if self._live or not self._flow.is_full:
                return
            self._moved.clear()
            await self._moved.wait()

    async def _send(self, kind: Kind, index: int, payload: bytes) -> None:
        self._flow.sent(kind, index)
        await send_if_open(self._socket, pack_message(kind, index, payload))

    async def _send_event(self, name: str) -> None:
        await send_if_open(self._socket, pack_event(name))

    async def _connect(self) -> None:
        """Open the WebSocket and take the welcome. Raises LinkError."""
        opened = await self._connector.connect(self._wanted, self._begin_again)
        self._socket, self.welcome = opened
        self._pcm.frame_samples = self.welcome["hop"] * self.welcome["channels"]
        names = ("frame", "decoded", "encoder_start_frames", "decoder_start_frames")
        self._flow.begin(*(self.welcome[name] for name in names))

    def _wanted(self) -> tuple[StreamRequest, str | None]:
        token = self.welcome.get("resume")
        if token is None:
            return self.request, None
        codes, pcm = self._flow.next[Kind.CODES], self._flow.next[Kind.PCM]
        return replace(self.request, frame=codes, decoded=pcm), token

    def _begin_again(self) -> bool:
        """Forget a server that went away before it saved anything, and start over."""
        if not (self._pcm.has_all and self._codes.has_all):
            return False
        del self.welcome["resume"]
        return True

    async def _repeat(self) -> None:
        """Send again what the server has not saved, and let new frames follow."""
        for index, message in self._pcm.since(self.welcome["frame"]):
            await self._room_again()
            await self._send(Kind.PCM, index, message)
        for index, payload in self._codes.since(self.welcome["decoded"]):
            await self._room_again()
            if payload is not None:
                await self._send(Kind.CODES, index, payload)
        self._connected.set()
        if self._finishing:
            await self._send_event("CloseStream")

    async def _room_again(self) -> None:
        while self._flow.is_full:
            self._moved.clear()
            await self._moved.wait()

    async def _run(self) -> None:
        """Receive, and reconnect when that ends, until the stream has ended."""
        try:
            while True:
                await self._receive()
                if self._ended:
                    return
                self._connected.clear()
                lost, self._socket = self._socket, None
                if lost is not None:
                    await lost.close()
                if self._repeating is not None:
                    self._repeating.cancel()
                await self._connect()
                self.resumed += 1
                self._repeating = asyncio.create_task(self._repeat())
        except PacketError as error:
            self._received.put_nowait(LinkError(f"the server sent an unreadable message: {error}"))
        except Exception as error:  # noqa: BLE001 - whoever iterates has to hear of the end
            self._received.put_nowait(error)
        finally:
            self._ended = True
            if self._repeating is not None:
                self._repeating.cancel()
            self._connected.set()
            self._moved.set()
            self._received.put_nowait(None)

    async def _receive(self) -> None:
        assert self._socket is not None, "receiving comes after connecting"
        socket = self._socket
        while not self._ended:
            try:
                message = await asyncio.wait_for(socket.receive(), KEEP_ALIVE_S)
            except asyncio.TimeoutError:
                await self._send_event("KeepAlive")
                continue
            if message.type == aiohttp.WSMsgType.BINARY:
                self._take(message.data)
            elif message.type == aiohttp.WSMsgType.TEXT:
                event = parse_event(message.data)
                self._hear(event)
                if event["type"] == "Snapshot":
                    await self._send_event("Kept")
            else:
                closed = message.type == aiohttp.WSMsgType.CLOSE
                if closed and message.data in ENDS and not self._ended:
                    said = f" ({message.extra})" if message.extra else ""
                    raise LinkError(f"the server closed the stream: {message.data}{said}")
                return

    def _take(self, data: bytes) -> None:
        kind, index, payload = parse_message(data)
        frame = unpack_frame(kind, index, payload, self.welcome)
        # A message of several frames, as at an exact start, counts as all of them.
        frames = 1 if frame.audio is None else -(-frame.audio.size // self._pcm.frame_samples)
        self._moved.set()
        if self._flow.received(kind, index, frames):
            self._received.put_nowait(frame)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["type"] == "Snapshot":
            self._pcm.forget(whole_number(event, "frame"))
            self._codes.forget(whole_number(event, "decoded"))
        elif event["type"] == "Dropped":
            self.dropped.append(dropped := dropped_by(event))
            self._flow.skip_to(dropped.first + dropped.count)
            self._moved.set()
        elif event["type"] == "Finalized":
            self._finalized += 1
            both = self.request.mode == "duplex"
            self._ended = self._ended or (self._finishing and self._finalized > both)
        elif event["type"] == "Error":
            self.errors.append(f"{event.get('error')}: {event.get('message')}")
