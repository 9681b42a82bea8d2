"""Nothing is lost: not by a killed server, a drain, a lost connection, or a second coming."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from encodec_rt.client import ServedFrame, StreamClient
from encodec_rt.client.stream import KEEP_ALIVE_S
from encodec_rt.errors import LinkError
from encodec_rt.link import credentials
from encodec_rt.pcm import to_int16
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.protocol import (
    RESUME,
    STREAM_PATH,
    SUBPROTOCOL,
    Kind,
    pack_event,
    pack_message,
    parse_event,
)
from encodec_rt.server.service import ServerOptions, StreamServer
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.store import KEPT, SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Audio
from tests.support.models import random_model, tiny_config
from tests.support.serving import (
    QUICK,
    all_of,
    audio_of,
    codes_of,
    push,
    said,
    serving,
    tiny_codec,
)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


PATIENCE_S = 200.0
"""A busy machine may take as long to start a process that imports torch."""


class Process:
    """A server in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "encodec_rt", "serve", "--model", str(folder / "model")]
        command += ["-b", "1.616", "--sessions", "4", "--state", str(folder / "state")]
        command += ["--port", str(port)]
        command += ["--drain-s", "0.5"]
        self.running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.running.stderr is not None
        line = self.running.stderr.readline()
        found = re.search(r"on (http://127\.0\.0\.1:(\d+));", line)
        assert found is not None, line
        self.url, self.port = found[1], int(found[2])

    def end(self, number: signal.Signals) -> int:
        self.running.send_signal(number)
        assert self.running.stderr is not None
        self.running.stderr.read()
        self.running.stderr.close()
        return self.running.wait(20)


def test_after_a_kill_every_session_goes_on_with_the_codes_of_an_undisturbed_stream(
    tmp_path: Path,
) -> None:
    kbps = (0.404, 0.808, 1.616)
    starts: tuple[Start, ...] = ("primed", "exact", "zero")
    codec = Codec(random_model(tiny_config(target_bandwidths=kbps)), backend="cpu")
    codec.model.save_pretrained(tmp_path / "model")

    async def one(stream: StreamClient, clip: Audio, heard: list[ServedFrame]) -> None:
        async def listen() -> None:
            async for frame in stream:
                heard.append(frame)

        await asyncio.gather(listen(), push(stream, clip, 10, 0.01))

    async def kill(started: list[Process]) -> None:
        """As soon as every session was kept, and before any has ended."""
        kept: set[str] = set()
        while len(kept) < 3:
            await asyncio.sleep(0.01)
            kept = {path.name.split("-")[0] for path in (tmp_path / "state").glob("*.session")}
        await asyncio.to_thread(started[0].end, signal.SIGKILL)
        started.append(await asyncio.to_thread(Process, tmp_path, started[0].port))

    async def run(started: list[Process]) -> None:
        started.append(await asyncio.to_thread(Process, tmp_path, 0))
        clips = [said(320.5, codec, at) for at in range(3)]
        heard: list[list[ServedFrame]] = [[] for _ in clips]
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(
                    StreamClient(
                        started[0].url,
                        bandwidth_kbps=kbps[at],
                        start=starts[at],
                        retry_s=PATIENCE_S,
                    )
                )
                for at in range(3)
            ]
            jobs = [one(*each) for each in zip(streams, clips, heard, strict=True)]
            await asyncio.gather(kill(started), *jobs)
        assert [stream.resumed for stream in streams] == [1, 1, 1]
        assert not any(stream.dropped or stream.errors for stream in streams)
        for at, clip in enumerate(clips):
            encoder = codec.stream_encoder(kbps[at], start=starts[at])
            decoder = codec.stream_decoder(kbps[at], start=starts[at])
            codes = codes_of(heard[at])
            assert np.array_equal(codes, np.concatenate([encoder.push(clip), encoder.flush()]))
            wanted = np.concatenate([decoder.push(codes), decoder.flush()])[: len(clip)]
            np.testing.assert_allclose(audio_of(heard[at]), wanted.clip(-1, 1), atol=2 / 32768)
        assert started[1].end(signal.SIGTERM) == 0
        assert not list((tmp_path / "state").glob("*.session"))

    started: list[Process] = []
    try:
        asyncio.run(run(started))
    finally:
        for process in started:
            if process.running.poll() is None:
                process.end(signal.SIGKILL)


def test_a_drain_announces_waits_keeps_and_says_1012(codec: Codec, tmp_path: Path) -> None:
    clip = said(60, codec)
    limits = SessionLimits(drain_s=3.0, close_over_s=0.01)
    kbps = codec.config.target_bandwidths[-1]

    async def run() -> None:
        async with serving(codec, tmp_path, limits=limits) as (server, url):
            port = int(url.rpartition(":")[2])
            async with StreamClient(url, mode="encode", bandwidth_kbps=kbps) as stream:
                receiving = asyncio.create_task(all_of(stream))
                await stream.send_audio(clip[:203])
                draining = asyncio.create_task(server.drain())
                while not server.is_draining:
                    await asyncio.sleep(0)
                with pytest.raises(LinkError, match="503"):
                    async with StreamClient(url, bandwidth_kbps=kbps, retry_s=0):
                        pass
                await stream.send_audio(clip[203:300])
                await draining
                assert b'closed_total{code="1012"} 1.0' in server.metrics.text()
                async with serving(codec, tmp_path, port=port):
                    await push(stream, clip[300:], 16)
                    frames = await receiving
                assert stream.resumed == 1
                encoder = codec.stream_encoder(kbps)
                wanted = np.concatenate([encoder.push(clip), encoder.flush()])
                assert np.array_equal(codes_of(frames), wanted)

    asyncio.run(run())


def test_a_drain_ends_at_once_where_nobody_is_left(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        limits = SessionLimits(drain_s=30.0)
        async with serving(codec, tmp_path, limits=limits) as (server, _):
            await asyncio.wait_for(server.drain(), 5.0)

    asyncio.run(run())


def test_a_client_whose_connection_was_cut_resumes_on_the_same_server(
    codec: Codec, tmp_path: Path
) -> None:
    clip = said(80, codec)
    kbps = codec.config.target_bandwidths[0]

    async def run() -> None:
        async with (
            serving(codec, tmp_path, slots=1) as (server, url),
            StreamClient(url, bandwidth_kbps=kbps) as stream,
        ):

            async def cut() -> None:
                for _ in range(3):
                    await asyncio.sleep(0.15)
                    await stream._connected.wait()
                    assert stream._socket is not None
                    stream._socket._response.close()
                    while stream._connected.is_set():
                        await asyncio.sleep(0)

            jobs = (all_of(stream), push(stream, clip, 8, 0.008), cut())
            frames, _, _ = await asyncio.gather(*jobs)
            assert stream.resumed == 3
            encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
            wanted = encoder.push(clip)
            assert np.array_equal(codes_of(frames), wanted)
            heard = audio_of(frames)
            np.testing.assert_allclose(heard, decoder.push(wanted).clip(-1, 1), atol=2 / 32768)
            assert server.sessions.count <= 1

    asyncio.run(run())


def test_a_session_that_was_never_kept_is_begun_again_with_the_same_codes(
    codec: Codec, tmp_path: Path
) -> None:
    clip = said(60, codec)
    limits = SessionLimits(snapshot_s=60.0)

    async def run() -> None:
        async with (
            serving(codec, tmp_path, limits=limits) as (_, url),
            StreamClient(url, mode="encode", bandwidth_kbps=0.404) as stream,
        ):

            async def lose() -> None:
                await asyncio.sleep(0.2)
                stream.welcome["resume"] = "of a server that is gone"
                assert stream._socket is not None
                stream._socket._response.close()

            jobs = (all_of(stream), push(stream, clip, 8, 0.01), lose())
            frames, _, _ = await asyncio.gather(*jobs)
            assert stream.resumed == 1
            assert np.array_equal(codes_of(frames), codec.stream_encoder(0.404).push(clip))

    asyncio.run(run())


def test_a_session_nobody_knows_or_of_another_kind_is_not_resumed(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with serving(codec, tmp_path) as (server, url):
            for change in ("resume", "mode"):
                async with StreamClient(url, bandwidth_kbps=0.404) as stream:
                    await stream.send_audio(said(20, codec))
                    await asyncio.sleep(0.2)
                    stream._pcm.forget(5)
                    if change == "resume":
                        stream.welcome["resume"] = "nobody"
                    else:
                        stream.request = type(stream.request)("encode", 0.404)
                    assert stream._socket is not None
                    stream._socket._response.close()
                    with pytest.raises(LinkError, match="409"):
                        await all_of(stream)
            assert b'refused_total{reason="resume"} 2.0' in server.metrics.text()

    asyncio.run(run())


def test_an_engine_that_dies_ends_its_sessions_and_takes_no_more(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (server, url),
            StreamClient(url, bandwidth_kbps=0.404, retry_s=0.0) as stream,
        ):
            await asyncio.to_thread(server.sessions.engine_loop.stop)
            assert not server.is_alive
            with pytest.raises(LinkError, match="503"):
                async with StreamClient(url, bandwidth_kbps=0.404, retry_s=0.0):
                    pass
            await server.close()
            assert server.sessions.count == 0
            with pytest.raises(LinkError):
                await all_of(stream)

    asyncio.run(run())


def test_over_tls_a_client_pins_the_certificate(codec: Codec, tmp_path: Path) -> None:
    token = "a-token-that-nobody-will-ever-guess-1234"
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(certificate, key, ["127.0.0.1"])
    digest = credentials.parse_fingerprint(credentials.read_fingerprint(certificate))

    async def run() -> None:
        options = ServerOptions(token, limits=QUICK)
        server = StreamServer(codec, 1, 0.404, SessionStore(tmp_path / "state"), options)
        port = await server.start("127.0.0.1", 0, credentials.server_context(certificate, key))
        try:
            url = f"https://127.0.0.1:{port}"
            pin = aiohttp.Fingerprint(digest)
            again: dict[str, Any] = {"bandwidth_kbps": 0.404, "token": token, "retry_s": 0.0}
            async with StreamClient(url, context=pin, **again) as stream:
                frames, _ = await asyncio.gather(all_of(stream), push(stream, said(9, codec), 7))
                assert len(codes_of(frames)) == 9
            with pytest.raises(LinkError, match="cannot be reached"):
                async with StreamClient(url, **again):
                    pass
        finally:
            await server.close()

    asyncio.run(run())


def test_the_store_keeps_the_last_states_and_passes_over_what_is_damaged(
    codec: Codec, tmp_path: Path
) -> None:
    store, found = SessionStore(tmp_path / "kept"), []

    async def run() -> None:
        async with (
            serving(codec, tmp_path / "server") as (server, url),
            StreamClient(url, bandwidth_kbps=0.404) as stream,
        ):
            await stream.send_audio(said(20, codec))
            await asyncio.sleep(0.3)
            found.extend(server.sessions._store.load(stream.welcome["resume"]))

    asyncio.run(run())
    state = found[0]
    for _ in range(5):
        store.save("token", state)
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == KEPT
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert not any("token" in path.name for path in files)
    files[-1].write_bytes(files[-1].read_bytes()[:-7])
    files[0].write_bytes(b"")
    assert len(store.load("token")) == KEPT - 2
    assert store.load("tok") == []
    again = SessionState.from_bytes(state.to_bytes())
    assert (again.request, again.progress) == (state.request, state.progress)
    left = tmp_path / "kept" / ".half-written.part"
    left.write_bytes(b"")
    store.expire()
    assert left.exists()
    os.utime(left, (0, 0))
    store.expire()
    assert not left.exists()
    store.forget("token")
    assert not list((tmp_path / "kept").iterdir())


def test_a_client_that_lags_behind_finds_the_last_state_that_it_has_heard_of(
    codec: Codec, tmp_path: Path
) -> None:
    query = {"mode": "encode", "bandwidth": "0.404", "start": "primed"}

    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            url += STREAM_PATH
            socket = await session.ws_connect(url, params=query, protocols=(SUBPROTOCOL,))
            welcome = await socket.receive_json()
            clip = said(60, codec)
            pcm = to_int16(clip).astype("<i2").tobytes()
            for index in range(60):
                at = 2 * codec.config.hop_length * index
                piece = pcm[at : at + 2 * codec.config.hop_length]
                await socket.send_bytes(pack_message(Kind.PCM, index, piece))
                if index == 20:
                    heard = await snapshot(socket)
                    await socket.send_str(pack_event("Kept"))
                # Longer than a snapshot's time, so that many of them pass unheard.
                await asyncio.sleep(2 * QUICK.snapshot_s if index > 40 else 0.001)
            socket._response.close()
            while server.sessions.count:
                await asyncio.sleep(0.01)
            again = query | {"frame": str(heard)}
            protocols = (SUBPROTOCOL, RESUME + welcome["resume"])
            async with session.ws_connect(url, params=again, protocols=protocols) as resumed:
                assert (await resumed.receive_json())["frame"] == heard

    asyncio.run(run())


def test_a_client_ends_though_its_cancellation_is_swallowed(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for, received = asyncio.wait_for, list[bool]()

    async def swallowing(waiting: Any, seconds: float) -> Any:
        """As Python before 3.12, where a message comes in the moment of the cancellation."""
        received.extend([False] * (seconds == KEEP_ALIVE_S))
        try:
            return await wait_for(waiting, seconds)
        except asyncio.CancelledError:
            received.append(True)
            return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, pack_event("Draining"), None)

    async def run() -> None:
        monkeypatch.setattr(asyncio, "wait_for", swallowing)
        async with (
            serving(codec, tmp_path) as (_, url),
            StreamClient(url, bandwidth_kbps=0.404) as stream,
        ):
            while False not in received:
                await asyncio.sleep(0.01)
        assert stream._task is not None
        assert stream._task.done()

    asyncio.run(run())
    assert received[received.index(True) :] == [True]


async def snapshot(socket: aiohttp.ClientWebSocketResponse) -> int:
    """The frame of the next Snapshot."""
    while True:
        message = await socket.receive(10.0)
        if message.type == aiohttp.WSMsgType.TEXT:
            event = parse_event(message.data)
            if event["type"] == "Snapshot":
                frame = event["frame"]
                assert isinstance(frame, int)
                return frame
