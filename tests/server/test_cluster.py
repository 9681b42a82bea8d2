"""Sessions are placed where there is room, and go on elsewhere when their worker is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from encodec_rt.client import ServedFrame, StreamClient
from encodec_rt.errors import ConfigError, LinkError, StateError
from encodec_rt.server.cluster import _fit
from encodec_rt.server.placer import Placer
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.store import SessionStore
from encodec_rt.server.worker import WorkerStatus
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from tests.support.models import random_model, tiny_config
from tests.support.serving import all_of, codes_of, push, said, serving, tiny_codec

ROOT = Path(__file__).parents[2]
KBPS = 1.616
TOKEN = "a-token-that-nobody-will-ever-guess-1234"


class Fake:
    """A worker that says what it is told to, or nothing."""

    def __init__(self, number: int, slots: int) -> None:
        self.said: WorkerStatus | None = WorkerStatus(
            f"http://127.0.0.1:{number}", None, number, slots, 0, draining=False
        )
        self.drained = False

    async def status(self) -> WorkerStatus:
        if self.said is None:
            raise RuntimeError("Traceback\nValueError: it is dead")
        return self.said

    async def drain(self) -> None:
        self.drained = True


@asynccontextmanager
async def placing(
    handles: list[Any], token: str | None = None
) -> AsyncIterator[tuple[Placer, str]]:
    placer = Placer(handles, token)
    port = await placer.start("127.0.0.1", 0, None)
    try:
        yield placer, f"http://127.0.0.1:{port}"
    finally:
        await placer.close()


async def placed(session: aiohttp.ClientSession, url: str, last: str = "") -> str | int:
    """Where one is sent, or the refusal."""
    answer = await session.get(url + "/v1/place", params={"last": last})
    return str((await answer.json())["url"]) if answer.status == 200 else answer.status


def test_who_comes_is_sent_where_most_slots_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encodec_rt.server.placer.ASK_EVERY_S", 1e6)

    async def run() -> None:
        small, large = Fake(1, 1), Fake(2, 3)
        async with placing([small, large]) as (placer, url), aiohttp.ClientSession() as session:
            assert (await session.get(url + "/readyz")).status in (200, 503)
            await placer.wait_ready()
            assert (await session.get(url + "/readyz")).status == 200
            # None of them has said anything new meanwhile, and yet nobody is counted twice.
            got = [await placed(session, url) for _ in range(5)]
            assert sorted(map(str, got)) == [
                "503", "http://127.0.0.1:1", *["http://127.0.0.1:2"] * 3
            ]  # fmt: skip
            assert await placed(session, url, "http://127.0.0.1:1") == "http://127.0.0.1:1"
            listed = await (await session.get(url + "/v1/workers")).json()
            assert [each["sessions"] for each in listed["workers"]] == [1, 3]
            await placer.drain()
            assert small.drained
            assert large.drained
            assert await placed(session, url, "http://127.0.0.1:1") == 503

    asyncio.run(run())


def test_nobody_is_sent_to_a_worker_that_is_gone_or_draining(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("encodec_rt.server.placer.ASK_EVERY_S", 0.01)

    async def settle(session: aiohttp.ClientSession, url: str, wanted: str | int) -> None:
        for _ in range(3000):
            if await placed(session, url, "http://127.0.0.1:2") == wanted:
                return
            await asyncio.sleep(0.03)
        raise AssertionError(f"never {wanted}")

    async def run() -> None:
        one, other = Fake(1, 1), Fake(2, 5000)
        async with placing([one, other]) as (placer, url), aiohttp.ClientSession() as session:
            await placer.wait_ready()
            alive, other.said = other.said, None
            await settle(session, url, "http://127.0.0.1:1")
            assert alive is not None
            other.said = alive
            await settle(session, url, "http://127.0.0.1:2")
            other.said, one.said = replace(alive, draining=True), None
            await settle(session, url, 503)
            listed = await (await session.get(url + "/v1/workers")).json()
            assert listed["workers"][1]["restarts"] >= 1

    asyncio.run(run())


def test_a_worker_that_cannot_start_is_named_and_a_stranger_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("encodec_rt.server.placer.ASK_EVERY_S", 0.01)

    async def run() -> None:
        dead = Fake(1, 1)
        dead.said = None
        async with placing([dead], TOKEN) as (placer, url), aiohttp.ClientSession() as session:
            with pytest.raises(StateError, match="does not start: ValueError: it is dead"):
                await asyncio.wait_for(placer.wait_ready(), 60)
            assert await placed(session, url) == 401
            page = {"Origin": "https://x.example"}
            assert (await session.get(url + "/livez", headers=page)).status == 403
            with pytest.raises(LinkError, match="401"):
                async with StreamClient(url, placed=True, retry_s=0.0):
                    pass
        with pytest.raises(LinkError, match="needs TLS and a token"):
            await Placer([dead], None).start("0.0.0.0", 0, None)

    asyncio.run(run())


def test_a_stream_moves_to_another_server_by_the_placers_word(tmp_path: Path) -> None:
    """And what its first server keeps afterwards, which is older, stands in nobody's way."""
    codec = tiny_codec()
    clip = said(80, codec)

    async def run() -> None:
        first, second = Fake(1, 4), Fake(2, 1)
        assert first.said is not None
        assert second.said is not None
        async with (
            serving(codec, tmp_path) as (server, one),
            serving(codec, tmp_path) as (other_server, other),
            placing([first, second]) as (placer, url),
        ):
            first.said, second.said = replace(first.said, url=one), replace(second.said, url=other)
            await placer.wait_ready()
            while (told := placer._workers[0].status) is None or told.url != one:
                await asyncio.sleep(0.01)
            async with StreamClient(url, placed=True, mode="encode", bandwidth_kbps=KBPS) as stream:
                receiving = asyncio.create_task(all_of(stream))
                await stream.send_audio(clip[:200])
                while not list(tmp_path.glob("*.session")):
                    await asyncio.sleep(0.01)
                first.said = None
                while placer._workers[0].status is not None:
                    await asyncio.sleep(0.01)
                (connection,) = server.sessions._clients.values()
                connection.cut()
                await push(stream, clip[200:], 16)
                frames = await receiving
                assert stream.resumed == 1
                assert b"sessions_closed_total" in other_server.metrics.text()
            encoder = codec.stream_encoder(KBPS)
            wanted = np.concatenate([encoder.push(clip), encoder.flush()])
            assert np.array_equal(codes_of(frames), wanted)

    asyncio.run(run())


def test_what_a_server_keeps_of_a_session_that_has_moved_on_is_not_kept(tmp_path: Path) -> None:
    codec = tiny_codec()
    found: list[SessionState] = []

    async def run() -> None:
        async with (
            serving(codec, tmp_path / "server") as (server, url),
            StreamClient(url, bandwidth_kbps=KBPS) as stream,
        ):
            await stream.send_audio(said(20, codec))
            while not found:
                await asyncio.sleep(0.01)
                found.extend(server.sessions._store.load(stream.welcome["resume"]))

    asyncio.run(run())
    state, store = found[0], SessionStore(tmp_path / "kept")
    moved = replace(state, progress=replace(state.progress, resumed=1))
    store.save("token", moved)
    store.save("token", state)
    assert [each.progress.resumed for each in store.load("token")] == [1]


def test_workers_never_reserve_more_than_the_cluster_has() -> None:
    told: list[str] = []
    share = _fit({"CPU": 2.0}, 3, "cpu", told.append)
    assert 3 * share["num_cpus"] < 2
    assert told == ["3 workers would need 3 CPUs, but the cluster has 2"]
    assert _fit({"CPU": 8.0, "GPU": 2.0}, 2, "cuda", told.append)["num_gpus"] == 1.0
    for resources, device in (({"CPU": 8.0}, "cuda"), ({}, "cpu")):
        with pytest.raises(ConfigError, match="add a node"):
            _fit(resources, 1, device, told.append)


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A placer and two workers on a Ray cluster of this machine; its address."""
    # The paths of its sockets may have 107 bytes, and pytest's own folders are too deep for that.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:
        command = [sys.executable, "-m", "encodec_rt", "serve", "--ray", "local", "--workers", "2"]
        command += ["--model", str(folder / "model"), "-b", str(KBPS), "--sessions", "4"]
        command += ["--state", str(folder / "state"), "--port", "0", "--drain-s", "0.5"]
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "RAY_TMPDIR": sockets},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert running.stderr is not None
            said_so_far = ""
            while not (found := re.search(r"from (http://127\.0\.0\.1:\d+);", said_so_far)):
                line = running.stderr.readline()
                assert line, said_so_far
                said_so_far += line
            yield found[1]
            running.send_signal(signal.SIGTERM)
            assert running.wait(100) == 0, running.stderr.read()
        finally:
            running.kill()
            running.communicate()


async def workers(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await (await session.get(url + "/v1/workers")).json())[
        "workers"
    ]
    return listed


async def kill_the_busier(url: str, folder: Path, sessions: int) -> str:
    """Kill a worker once all sessions were kept; its address."""
    kept: set[str] = set()
    while len(kept) < sessions:
        await asyncio.sleep(0.02)
        kept = {path.name.split("-")[0] for path in folder.glob("*.session")}
    async with aiohttp.ClientSession() as session:
        alive = [each for each in await workers(session, url) if "pid" in each]
    busier = max(alive, key=lambda each: int(each["sessions"]))
    assert busier["sessions"] > 0
    os.kill(busier["pid"], signal.SIGKILL)
    return str(busier["url"])


async def restarted(url: str, before: str) -> None:
    """Wait until both workers serve, none of them at the address of the killed one."""
    async with aiohttp.ClientSession() as session:
        while True:
            urls = [each.get("url") for each in await workers(session, url)]
            if None not in urls and before not in urls:
                return
            await asyncio.sleep(0.2)


def test_sessions_of_a_killed_worker_go_on_at_the_other_with_no_code_different(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'encodec-rt[ray]'")
    codec = Codec(random_model(tiny_config()), backend="cpu")
    codec.model.save_pretrained(tmp_path / "model")
    clips = [said(400.5, codec, at) for at in range(3)]

    async def one(stream: StreamClient, clip: Audio) -> list[ServedFrame]:
        frames, _ = await asyncio.gather(all_of(stream), push(stream, clip, 10, 0.01))
        return frames

    async def run(url: str) -> None:
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(
                    StreamClient(url, placed=True, bandwidth_kbps=KBPS, retry_s=100.0)
                )
                for _ in clips
            ]
            jobs = [one(*each) for each in zip(streams, clips, strict=True)]
            killing = asyncio.create_task(kill_the_busier(url, tmp_path / "state", len(clips)))
            heard = await asyncio.gather(*jobs)
            killed = await killing
        assert sum(stream.resumed for stream in streams) >= 1
        for stream, clip, frames in zip(streams, clips, heard, strict=True):
            assert not stream.dropped
            assert not stream.errors
            encoder = codec.stream_encoder(KBPS)
            wanted = np.concatenate([encoder.push(clip), encoder.flush()])
            assert np.array_equal(codes_of(frames), wanted)
        await asyncio.wait_for(restarted(url, killed), 100)

    with cluster(tmp_path) as url:
        asyncio.run(run(url))
