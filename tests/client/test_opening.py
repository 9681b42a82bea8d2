"""A client beside servers that are not ours, too new or damaged: an error, never silence."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from encodec_rt.client import StreamClient
from encodec_rt.errors import ConfigError, InputError, LinkError, StateError
from encodec_rt.server.protocol import STREAM_PATH, SUBPROTOCOL, Mode

WELCOME: dict[str, Any] = {
    "type": "Welcome",
    "resume": "token",
    "frame": 0,
    "decoded": 0,
    "codebooks": 8,
    "bits": 10,
    "hop": 320,
    "rate": 24_000,
    "channels": 1,
    "encoder_start_frames": 1,
    "decoder_start_frames": 1,
}
PCM = struct.pack("<BI", 1, 0) + bytes(640)


async def meet(
    first: str,
    messages: Sequence[str | bytes] = (),
    *,
    protocols: tuple[str, ...] = (SUBPROTOCOL,),
    mode: Mode = "echo",
    say: Any = None,
) -> int:
    """Frames that a client takes of a server that says this and then closes."""

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=protocols)
        await socket.prepare(request)
        await socket.send_str(first)
        for message in messages:
            await (
                socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message)
            )
        await socket.close()
        return socket

    application = web.Application()
    application.router.add_get(STREAM_PATH, answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with StreamClient(url, mode=mode, retry_s=0.0) as stream:
            if say is not None:
                await say(stream)
            return len([frame async for frame in stream])
    finally:
        await runner.cleanup()


def met(*arguments: Any, **options: Any) -> int:
    return asyncio.run(asyncio.wait_for(meet(*arguments, **options), 60.0))


@pytest.mark.parametrize("name", [name for name in WELCOME if name != "type"])
def test_a_welcome_that_lacks_something_is_refused(name: str) -> None:
    for value in (None, {"a": 1}, -1, "x" * 99 if name != "resume" else 7):
        with pytest.raises(LinkError, match="not as encodec-rt serve does"):
            met(json.dumps({**WELCOME, name: value}), [PCM])


@pytest.mark.parametrize("first", ["hello", "{}", '{"type":"Error"}', '{"type":"Hello","v":2}'])
def test_what_is_no_welcome_is_refused(first: str) -> None:
    with pytest.raises(LinkError, match="not as encodec-rt serve does"):
        met(first)


@pytest.mark.filterwarnings("ignore:Client protocols")
def test_a_server_of_another_protocol_is_refused() -> None:
    with pytest.raises(LinkError, match="does not speak encodec-rt"):
        met(json.dumps(WELCOME), protocols=("other.v9",))


@pytest.mark.parametrize(
    "message",
    [
        b"\1\0\0\0\0abc",
        b"\2\0\0\0\0\0",
        b"\3\0\0\0\0abc",
        b"",
        "no JSON",
        "[]",
        '{"type":"Snapshot"}',
        '{"type":"Snapshot","frame":"x","decoded":1}',
        '{"type":"Dropped","where":"in","first":null,"count":1}',
    ],
)
def test_what_cannot_be_read_ends_the_stream_with_an_error(message: str | bytes) -> None:
    with pytest.raises(LinkError, match="unreadable"):
        met(json.dumps(WELCOME), [PCM, message])


def test_events_of_a_newer_server_are_passed_over() -> None:
    with pytest.raises(LinkError, match="closed the stream: 1000"):
        met(json.dumps({**WELCOME, "new": 1}), [PCM, '{"type":"New"}', '{"type":"Error"}'])


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:1", "http://[::1", "ftp://h", "http://u:p@h", "http://h:99999"]
)
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(LinkError, match="not a server's address"):
        StreamClient(url)


@pytest.mark.parametrize(
    "audio",
    [np.full(5, np.nan, np.float32), np.zeros(5, np.int16), np.zeros((2, 5), np.float32)],
    ids=["nan", "int16", "stereo"],
)
def test_audio_that_is_none_is_refused_before_it_is_sent(audio: Any) -> None:
    async def say(stream: StreamClient) -> None:
        await stream.send_audio(audio)

    with pytest.raises(InputError, match="audio"):
        met(json.dumps(WELCOME), say=say)


@pytest.mark.parametrize(
    "codes",
    [np.zeros(8), np.full(8, 1024), np.zeros((1, 8), int), np.zeros(0, int), np.zeros(9, int), "x"],
)
def test_codes_that_are_none_are_refused_before_they_are_sent(codes: Any) -> None:
    async def say(stream: StreamClient) -> None:
        await stream.send_codes(codes)

    with pytest.raises(InputError, match="codes"):
        met(json.dumps(WELCOME), mode="decode", say=say)


@pytest.mark.parametrize(
    "options",
    [{"mode": "both"}, {"start": "soon"}, {"bandwidth_kbps": "6"}, {"bandwidth_kbps": None}],
)
def test_what_no_server_has_is_refused_before_it_is_asked_for(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        StreamClient("http://127.0.0.1:1", **options)


def test_a_stream_that_was_not_opened_takes_nothing() -> None:
    stream = StreamClient("http://127.0.0.1:1")
    with pytest.raises(StateError, match="not opened"):
        asyncio.run(stream.send_audio(np.zeros(1, np.float32)))


def test_the_server_s_reason_for_a_refusal_is_passed_on() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(
            {"error": "ConfigError", "message": "no 5 kbps\x1b[2J"}, status=400
        )

    async def run() -> None:
        application = web.Application()
        application.router.add_get(STREAM_PATH, refuse)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            with pytest.raises(LinkError, match=r"\(400\): no 5 kbps\[2J$"):
                async with StreamClient(f"http://{host}:{port}"):
                    pass
        finally:
            await runner.cleanup()

    asyncio.run(run())
