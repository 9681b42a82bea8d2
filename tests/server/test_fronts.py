"""Fronts in processes of their own: one engine's codes, slots and figures, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import WSCloseCode

from encodec_rt.client import ServedFrame, StreamClient
from encodec_rt.link import credentials
from encodec_rt.server.front_process import Front
from encodec_rt.server.fronts import FrontedServer
from encodec_rt.server.http_service import ServerOptions
from encodec_rt.server.protocol import SUBPROTOCOL, TICKET, TICKET_PATH, Kind, pack_message
from encodec_rt.server.records import RecordKind, RingRecord
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from tests.support.models import random_model, tiny_config
from tests.support.serving import (
    QUICK,
    TOKEN,
    all_of,
    audio_of,
    closed_with,
    codes_of,
    events,
    push,
    raw,
    said,
    serving,
    status,
    tiny_codec,
)

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


@asynccontextmanager
async def fronted(
    codec: Codec,
    folder: Path,
    *,
    slots: int = 6,
    fronts: int = 2,
    certificate: tuple[Path, Path] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[FrontedServer, str]]:
    kbps = codec.config.target_bandwidths[-1]
    chosen = ServerOptions(limits=QUICK, **options)
    server = FrontedServer(codec, slots, kbps, SessionStore(folder), chosen, fronts, certificate)
    context = None if certificate is None else credentials.server_context(*certificate)
    bound = await server.start("127.0.0.1", 0, context)
    try:
        yield server, f"http{'s' if certificate else ''}://127.0.0.1:{bound}"
    finally:
        await server.close()


async def until(holds: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not holds():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), PATIENCE_S)


def figure(text: bytes, name: str) -> float:
    """A figure of /metrics, with its labels."""
    (line,) = [each for each in text.decode().splitlines() if each.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


def fronts_of(server: FrontedServer) -> list[Front]:
    return [server._fronts[place] for place in sorted(server._fronts)]


def right(codec: Codec, clip: Audio, kbps: float, frames: list[ServedFrame]) -> None:
    """Every code of a stream, and the audio of those codes."""
    encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
    wanted = np.concatenate([encoder.push(clip), encoder.flush()])
    assert np.array_equal(codes_of(frames), wanted)
    heard = np.concatenate([decoder.push(wanted), decoder.flush()])[: len(clip)]
    np.testing.assert_allclose(audio_of(frames), heard.clip(-1, 1), atol=2 / 32768)


def test_codes_and_audio_over_two_fronts_are_those_of_streams(codec: Codec, tmp_path: Path) -> None:
    kbps = [codec.config.target_bandwidths[at % 3] for at in range(4)]
    clips = [said(60 + 0.3 * at, codec, at) for at in range(4)]

    async def run() -> None:
        async with fronted(codec, tmp_path) as (server, url), AsyncExitStack() as stack:
            streams = [StreamClient(url, bandwidth_kbps=each) for each in kbps]
            for stream in streams:
                await stack.enter_async_context(stream)
            assert [len(front.clients) for front in fronts_of(server)] == [2, 2]
            pushes = map(push, streams, clips, (3, 8, 21, 64))
            given = await asyncio.gather(*map(all_of, streams), *pushes)
            for clip, each, frames, stream in zip(clips, kbps, given, streams, strict=False):
                assert frames is not None
                right(codec, clip, each, frames)
                assert not [*stream.dropped, *stream.errors]
            await until(lambda: server.sessions.count == 0)
            text = await server.metrics_text()
            said_frames = sum(len(codes_of(frames)) for frames in given[:4] if frames is not None)
            assert figure(text, 'encodec_rt_sessions_closed_total{code="1000"}') == 4
            # A clip's last samples come with its end, and are no whole frame.
            assert figure(text, 'encodec_rt_frames_total{direction="in"}') == said_frames - 3
            assert figure(text, 'encodec_rt_frames_total{direction="out"}') >= 2 * said_frames - 4

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_any_front_answers_for_the_whole_server_and_over_tls(codec: Codec, tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    certificate = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(*certificate, ["127.0.0.1"])
    pin = credentials.parse_fingerprint(credentials.read_fingerprint(certificate[0]))
    options: dict[str, Any] = {"slots": 3, "token": TOKEN, "certificate": certificate}
    # Of one address, over all fronts; those that ask how the server is are not among them.
    options |= {"requests_per_s": 1e-9, "request_burst": 25}

    async def run() -> None:
        connector = aiohttp.TCPConnector(force_close=True, ssl=aiohttp.Fingerprint(pin))
        async with (
            fronted(codec, tmp_path, **options) as (server, url),
            aiohttp.ClientSession(connector=connector) as session,
        ):

            async def get(path: str, headers: dict[str, str] = bearer) -> tuple[int, bytes]:
                async with session.get(url + path, headers=headers) as answer:
                    return answer.status, await answer.read()

            for path in ("/metrics", "/v1/info"):
                assert (await get(path, {}))[0] == 401
            held = [await raw(session, url, headers=bearer) for _ in range(2)]
            tries = (raw(session, url, headers=bearer) for _ in range(2))
            got = await asyncio.gather(*tries, return_exceptions=True)
            refused = [each for each in got if isinstance(each, aiohttp.WSServerHandshakeError)]
            assert [each.status for each in refused] == [503]
            held += [each for each in got if isinstance(each, aiohttp.ClientWebSocketResponse)]
            before = [front.connections for front in fronts_of(server)]
            for _ in range(4):
                info = json.loads((await get("/v1/info"))[1])
                assert (info["sessions"], info["capacity"]) == (3, 3)
                text = (await get("/metrics"))[1]
                assert figure(text, "encodec_rt_sessions") == 3
                for path in ("/livez", "/readyz"):
                    # A machine that stood still says so, and then no more.
                    while (await get(path, {}))[0] != 200:
                        await asyncio.sleep(0.05)
            asked = [front.connections for front in fronts_of(server)]
            assert all(later > earlier for later, earlier in zip(asked, before, strict=True))
            for socket in held:
                await socket.close()
            await until(lambda: server.sessions.count == 0)
            ticket = await ticket_of(session, url, bearer)
            used = [
                await status(session, url, protocols=(SUBPROTOCOL, TICKET + ticket))
                for _ in range(4)
            ]
            assert used == [101, 401, 401, 401]
            await until(
                lambda: b'refused_total{reason="unauthorized"} 3.0' in server.metrics.text()
            )
            assert b'refused_total{reason="full"} 1.0' in server.metrics.text()
            before_these = 2 + 4 + 4 * 2 + 1 + 4
            answers = [(await get("/v1/info"))[0] for _ in range(10)]
            left = 25 - before_these
            assert answers == left * [200] + (10 - left) * [429]

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_after_the_kill_of_a_front_its_sessions_go_on_at_another(
    codec: Codec, tmp_path: Path
) -> None:
    kbps = codec.config.target_bandwidths[-1]
    clips = [said(150, codec, at) for at in range(4)]

    async def run() -> None:
        async with fronted(codec, tmp_path, slots=4) as (server, url), AsyncExitStack() as stack:
            streams = [StreamClient(url, bandwidth_kbps=kbps, retry_s=PATIENCE_S) for _ in clips]
            for stream in streams:
                await stack.enter_async_context(stream)
            first, second = fronts_of(server)

            killed = asyncio.Event()
            jobs = [*map(all_of, streams), *map(in_two, streams, clips, 4 * [killed])]
            working = asyncio.gather(*jobs)
            await until(lambda: len(list(tmp_path.glob("*.session"))) >= 4)
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: len(first.clients) == 0)
            killed.set()
            given = await asyncio.wait_for(working, PATIENCE_S)
            assert sorted(stream.resumed for stream in streams) == [0, 0, 1, 1]
            for clip, frames in zip(clips, given, strict=False):
                assert frames is not None
                right(codec, clip, kbps, frames)
            await until(lambda: all(front.is_ready for front in fronts_of(server)))
            again, same = fronts_of(server)
            assert same is second
            assert again.pid != first.pid
            # A front waits for its clients' answers to the close.
            await until(lambda: not any(front.clients for front in fronts_of(server)))
            async with StreamClient(url, bandwidth_kbps=kbps):
                assert [len(front.clients) for front in fronts_of(server)] == [1, 0]
            await until(lambda: server.sessions.count == 0)
            text = await server.metrics_text()
            assert figure(text, 'encodec_rt_sessions_closed_total{code="1006"}') == 2

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_damaged_ring_ends_its_front_with_a_typed_error_and_no_other(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with (
            fronted(codec, tmp_path) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            sockets = [await raw(session, url) for _ in range(2)]
            first, second = fronts_of(server)
            assert [len(first.clients), len(second.clients)] == [1, 1]
            # As a front would write that has gone mad; a sane one may write at the same time.
            while first._link.is_open:
                first._link._reader._words[0] += 4
                first._link._read()
            (error,) = await events(sockets[0], 1)
            assert error["error"] == "PacketError"
            assert await closed_with(sockets[0]) == WSCloseCode.INTERNAL_ERROR
            await sockets[1].send_bytes(
                pack_message(Kind.PCM, 0, bytes(2 * codec.config.hop_length))
            )
            assert (await sockets[1].receive(PATIENCE_S)).type == aiohttp.WSMsgType.BINARY
            assert second.is_ready
            await sockets[1].close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_record_of_a_session_that_cannot_be_read_ends_that_session_alone(
    codec: Codec, tmp_path: Path
) -> None:
    hop = codec.config.hop_length
    wrong = [
        RingRecord(RecordKind.PCM, content=bytes(3)),
        RingRecord(RecordKind.PCM, content=bytes(4 * hop)),
        RingRecord(RecordKind.END_PCM, content=bytes(2 * hop)),
        RingRecord(RecordKind.CODES, content=b"\xff\xff"),
        RingRecord(RecordKind.CODES, content=bytes(2 * 9)),
    ]

    async def run() -> None:
        async with (
            fronted(codec, tmp_path, fronts=1) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            sockets = [await raw(session, url) for _ in range(1 + len(wrong))]
            (front,) = fronts_of(server)
            for record, key in zip(wrong, list(front.clients._clients), strict=False):
                front.clients.take(record._replace(key=key))
            for socket in sockets[:-1]:
                (error,) = await events(socket, 1)
                assert error["error"] == "PacketError"
                assert await closed_with(socket) == WSCloseCode.INTERNAL_ERROR
            await sockets[-1].send_bytes(pack_message(Kind.PCM, 0, bytes(2 * hop)))
            assert (await sockets[-1].receive(PATIENCE_S)).type == aiohttp.WSMsgType.BINARY
            await sockets[-1].close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_drain_is_told_by_all_fronts_and_ends_them(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            fronted(codec, tmp_path) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            sockets = [await raw(session, url) for _ in range(4)]
            draining = asyncio.create_task(server.drain())
            for socket in sockets:
                (told,) = await events(socket, 1)
                assert told == {"type": "Draining", "seconds": QUICK.drain_s}
            assert [await closed_with(socket) for socket in sockets] == 4 * [1012]
            await draining
            text = await server.metrics_text()
            assert figure(text, 'encodec_rt_sessions_closed_total{code="1012"}') == 4
            assert all(front._process.returncode == 0 for front in fronts_of(server))

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_killed_engine_ends_its_fronts_and_sessions_go_on_at_another_server(
    tmp_path: Path,
) -> None:
    codec = Codec(random_model(tiny_config(target_bandwidths=(0.404, 1.616))), backend="cpu")
    codec.model.save_pretrained(tmp_path / "model")
    state, clips = tmp_path / "state", [said(100, codec, at) for at in range(2)]

    async def run() -> None:
        first = await asyncio.to_thread(Process, tmp_path)
        options: dict[str, Any] = {"bandwidth_kbps": 1.616, "retry_s": PATIENCE_S}
        try:
            async with (
                StreamClient(first.url, **options) as one,
                StreamClient(first.url, **options) as other,
            ):
                streams, killed = (one, other), asyncio.Event()
                jobs = [*map(all_of, streams), *map(in_two, streams, clips, 2 * [killed])]
                working = asyncio.gather(*jobs)
                await until(lambda: len({each.name[:40] for each in state.glob("*.session")}) == 2)
                await asyncio.to_thread(first.kill)
                killed.set()
                # A server without fronts, for which the states are as good.
                async with serving(codec, state, port=first.port) as (server, _):
                    given = await asyncio.wait_for(working, PATIENCE_S)
                    await until(lambda: server.sessions.count == 0)
        finally:
            await asyncio.to_thread(first.kill)
        assert [one.resumed, other.resumed] == [1, 1]
        for clip, frames in zip(clips, given, strict=False):
            assert frames is not None
            right(codec, clip, 1.616, frames)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


async def in_two(stream: StreamClient, clip: Audio, between: asyncio.Event) -> None:
    """Push a clip of whose second half nothing is sent before ``between``."""
    half = len(clip) // 2
    for at in range(0, half, 16):
        await stream.send_audio(clip[at : min(at + 16, half)])
    await between.wait()
    await push(stream, clip[half:], 24)


async def ticket_of(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str:
    async with session.post(url + TICKET_PATH, headers=headers) as answer:
        return str((await answer.json())["ticket"])


class Process:
    """A server in a process of its own, with two fronts."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "encodec_rt", "serve", "--model", str(folder / "model")]
        command += ["-b", "1.616", "--sessions", "2", "--state", str(folder / "state")]
        command += ["--port", "0", "--fronts", "2"]
        self._running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        found = None
        assert self._running.stderr is not None
        while found is None:
            line = self._running.stderr.readline()
            assert line, "the server has ended"
            found = re.search(r"on (http://127\.0\.0\.1:(\d+));", line)
        self.url, self.port = found[1], int(found[2])

    def kill(self) -> None:
        """Returns once nobody has its standard error, which its fronts have, too."""
        self._running.kill()
        self._running.communicate(timeout=PATIENCE_S)
