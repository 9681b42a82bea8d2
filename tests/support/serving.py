"""A server with a tiny model in this process, and helpers that talk to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from encodec_rt.client import ServedFrame, StreamClient
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.protocol import STREAM_PATH, SUBPROTOCOL
from encodec_rt.server.service import ServerOptions, StreamServer
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support.models import random_model, speech, tiny_config

QUICK = SessionLimits(snapshot_s=0.05, events_per_s=100.0, drain_s=0.2, close_over_s=0.01)
QUERY = {"mode": "encode", "bandwidth": "1.616"}
TOKEN = "a-token-that-nobody-will-ever-guess-1234"


def tiny_codec(**changes: Any) -> Codec:
    """A model with 100 frames per second that takes little time."""
    return Codec(random_model(tiny_config(**changes)), backend="cpu")


@asynccontextmanager
async def serving(
    codec: Codec,
    folder: Path,
    *,
    slots: int = 4,
    port: int = 0,
    limits: SessionLimits = QUICK,
    **options: Any,
) -> AsyncIterator[tuple[StreamServer, str]]:
    """A server and its address; it is closed at the end of the block."""
    bandwidth_kbps = codec.config.target_bandwidths[-1]
    chosen = ServerOptions(limits=limits, **options)
    server = StreamServer(codec, slots, bandwidth_kbps, SessionStore(folder), chosen)
    bound = await server.start("127.0.0.1", port, None)
    try:
        yield server, f"http://127.0.0.1:{bound}"
    finally:
        await server.close()


def said(frames: float, codec: Codec, seed: int = 0) -> Audio:
    """Speech of ``frames`` frames, rounded to 16 bits."""
    length = int(frames * codec.config.hop_length)
    pcm = np.rint(speech(length, seed=seed).numpy() * 32768.0).clip(-32768, 32767)
    audio: Audio = (pcm / 32768.0).astype(np.float32)
    return audio


async def push(stream: StreamClient, audio: Audio, piece: int, pause_s: float = 0.0) -> None:
    """Send ``audio`` in pieces of ``piece`` samples, and finish."""
    for at in range(0, audio.shape[-1], piece):
        await stream.send_audio(audio[..., at : at + piece])
        await asyncio.sleep(pause_s)
    await stream.finish()


async def all_of(stream: StreamClient) -> list[ServedFrame]:
    """Every frame until the stream ends."""
    return [frame async for frame in stream]


def codes_of(frames: list[ServedFrame]) -> Codes:
    """The codes [frames, Q] among ``frames``, which must be in order and without a gap."""
    found = [(frame.index, frame.codes) for frame in frames if frame.codes is not None]
    assert [index for index, _ in found] == list(range(len(found)))
    return np.stack([codes for _, codes in found])


def audio_of(frames: list[ServedFrame]) -> Audio:
    """The audio among ``frames``."""
    return np.concatenate([frame.audio for frame in frames if frame.audio is not None], axis=-1)


async def raw(
    session: aiohttp.ClientSession, url: str, *, query: dict[str, str] = QUERY, **options: Any
) -> aiohttp.ClientWebSocketResponse:
    """An open WebSocket that has received its welcome."""
    options.setdefault("protocols", (SUBPROTOCOL,))
    options.setdefault("autoclose", False)
    socket: aiohttp.ClientWebSocketResponse = await session.ws_connect(
        url + STREAM_PATH, params=query, **options
    )
    welcome = await socket.receive_json()
    assert welcome["type"] == "Welcome"
    return socket


async def status(session: aiohttp.ClientSession, url: str, **options: Any) -> int:
    """The HTTP status with which an opening is refused, or 101 if it is not."""
    try:
        await (await raw(session, url, **options)).close()
    except aiohttp.WSServerHandshakeError as error:
        return error.status
    return 101


async def events(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    """The next events that are neither frames nor snapshots."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        message = await socket.receive(10.0)
        if message.type == aiohttp.WSMsgType.TEXT and "Snapshot" not in message.data:
            found.append(json.loads(message.data))
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
    return found


async def closed_with(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Wait for a close -> its code, or None if the connection ended without one."""
    while True:
        message = await socket.receive(10.0)
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
            await socket.close()
            return message.data if message.type == aiohttp.WSMsgType.CLOSE else None
