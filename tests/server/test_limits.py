"""Whoever misbehaves is refused by name, and nobody beside them notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.client import StreamClient
from encodec_rt.errors import LinkError
from encodec_rt.server.connection import Connection
from encodec_rt.server.protocol import (
    MAX_FRAME,
    MAX_INDEX,
    MAX_MESSAGE_BYTES,
    STREAM_PATH,
    SUBPROTOCOL,
    TICKET,
    TICKET_PATH,
    Kind,
    pack_event,
    pack_message,
)
from encodec_rt.streaming.codec import Codec
from tests.support.serving import (
    QUERY,
    QUICK,
    TOKEN,
    all_of,
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

KBPS = 1.616


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


def beside_a_neighbour(codec: Codec, folder: Path, misbehave: Misbehaviour, **options: Any) -> None:
    """Run ``misbehave`` beside a session, which must get every code and lose nothing."""

    async def run() -> None:
        clip = said(120, codec)
        async with (
            serving(codec, folder, **options) as (server, url),
            aiohttp.ClientSession() as session,
            StreamClient(url, mode="encode", bandwidth_kbps=KBPS) as neighbour,
        ):
            jobs = all_of(neighbour), push(neighbour, clip, 8, 0.005), misbehave(session, url)
            frames, *_ = await asyncio.gather(*jobs)
            assert np.array_equal(codes_of(frames), codec.stream_encoder(KBPS).push(clip))
            assert not neighbour.dropped
            assert neighbour.resumed == 0
            while server.sessions.count:
                await asyncio.sleep(0.01)

    asyncio.run(run())


Misbehaviour = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


def test_of_fifty_openings_at_once_one_gets_the_last_slot(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(codec, tmp_path, slots=3) as (server, url):
            async with aiohttp.ClientSession() as session:
                held = [await raw(session, url) for _ in range(2)]
                tries = (raw(session, url) for _ in range(50))
                got = await asyncio.gather(*tries, return_exceptions=True)
                won = [each for each in got if isinstance(each, aiohttp.ClientWebSocketResponse)]
                lost = [each for each in got if isinstance(each, aiohttp.WSServerHandshakeError)]
                assert (len(won), len(lost)) == (1, 49)
                no_headers: dict[str, str] = {}
                assert {
                    (each.status, (each.headers or no_headers)["Retry-After"]) for each in lost
                } == {(503, "2")}
                assert server.sessions.count == 3
                for socket in (*held, *won):
                    await socket.close()
            while server.sessions.count:
                await asyncio.sleep(0.01)
            assert b'refused_total{reason="full"} 49.0' in server.metrics.text()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"query": {"mode": "sing"}}, 400),
        ({"query": {"bandwidth": "nan"}}, 400),
        ({"query": {"bandwidth": "24"}}, 400),
        ({"query": {"start": "now"}}, 400),
        ({"query": {"frame": "-1"}}, 400),
        ({"query": {"token": TOKEN}}, 400),
        ({"protocols": ()}, 400),
        ({"protocols": ("encodec-rt.v2",)}, 400),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"headers": {"Host": "rebound.example"}}, 403),
        ({"protocols": (SUBPROTOCOL, "encodec-rt.resume.nobody")}, 409),
    ],
)
def test_an_opening_that_is_not_right_is_refused_before_the_upgrade(
    codec: Codec, tmp_path: Path, change: dict[str, Any], expected: int
) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            assert await status(session, url, **change) == expected
            assert server.sessions.count == 0
            assert (await session.get(url + STREAM_PATH, params=QUERY)).status in (400, 409)

    asyncio.run(run())


def test_a_token_or_a_ticket_is_needed_where_there_is_one(codec: Codec, tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    async def run() -> None:
        async with (
            serving(codec, tmp_path, token=TOKEN) as (_, url),
            aiohttp.ClientSession() as session,
        ):
            assert await status(session, url) == 401
            assert await status(session, url, headers={"Authorization": "Bearer no"}) == 401
            for scheme, code in (("bearer", 101), ("Basic", 401), ("", 401)):
                given = {"Authorization": f"{scheme} {TOKEN}"}
                assert await status(session, url, headers=given) == code
            for path in ("/metrics", "/v1/info"):
                assert (await session.get(url + path)).status == 401
                assert (await session.get(url + path, headers=bearer)).status == 200
            for path in ("/livez", "/readyz"):
                assert (await session.get(url + path)).status == 200
            assert (await session.post(url + TICKET_PATH)).status == 401
            answer = await session.post(url + TICKET_PATH, headers=bearer)
            ticket = (await answer.json())["ticket"]
            offered = (SUBPROTOCOL, TICKET + ticket)
            assert await status(session, url, protocols=offered) == 101
            assert await status(session, url, protocols=offered) == 401
            assert await status(session, url, protocols=(SUBPROTOCOL, TICKET + "1.2.3")) == 401
            async with StreamClient(url, bandwidth_kbps=KBPS, token=TOKEN):
                pass
            with pytest.raises(LinkError, match="401"):
                async with StreamClient(url, bandwidth_kbps=KBPS):
                    pass

    asyncio.run(run())


def test_a_page_that_is_allowed_may_connect(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        page = "https://page.example"
        async with (
            serving(codec, tmp_path, origins=frozenset({page})) as (_, url),
            aiohttp.ClientSession() as session,
        ):
            assert await status(session, url, origin=page) == 101
            assert await status(session, url, origin=page + ".evil.example") == 403
            for origin, expected in ((page, 204), ("https://evil.example", 403)):
                answer = await session.options(url + TICKET_PATH, headers={"Origin": origin})
                assert answer.status == expected
                allowed = answer.headers.get("Access-Control-Allow-Origin")
                assert allowed == (page if expected == 204 else None)
            posted = await session.post(url + TICKET_PATH, headers={"Origin": page})
            assert posted.headers["Access-Control-Allow-Origin"] == page

    asyncio.run(run())


def test_garbage_is_refused_by_name_and_then_hung_up_on(codec: Codec, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        socket = await raw(session, url)
        await socket.send_bytes(b"\x07\0\0\0\0abc")
        await socket.send_bytes(pack_message(Kind.PCM, 0, b"abc"))
        await socket.send_bytes(pack_message(Kind.CODES, 0, b"abc"))
        await socket.send_str("[" * 1000)
        await socket.send_str('{"type":"Sing"}')
        named = [event["error"] for event in await events(socket, 5)]
        assert named == ["PacketError", "InputError", "InputError", "PacketError", "PacketError"]
        for _ in range(200):
            await socket.send_bytes(random.bytes(int(random.integers(1, 40))))
        assert await closed_with(socket) == 4005
        socket = await raw(session, url, query={"mode": "decode", "bandwidth": str(KBPS)})
        wrong = [b"\xff" * 9, random.bytes(3), b""]
        for payload in wrong:
            await socket.send_bytes(pack_message(Kind.CODES, 0, payload))
        assert {event["type"] for event in await events(socket, 3)} == {"Error"}
        await socket.send_bytes(bytes(MAX_MESSAGE_BYTES + 1))
        assert await closed_with(socket) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG

    beside_a_neighbour(codec, tmp_path, misbehave)


def test_a_number_beyond_those_of_messages_is_refused(codec: Codec, tmp_path: Path) -> None:
    """What came of such a frame had no number that a message holds, which ended the engine."""
    hop = codec.config.hop_length

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        duplex = QUERY | {"mode": "duplex"}
        one = codec.encode(said(1, codec), KBPS)
        packet = encode_packet(Packet(np.repeat(one, 2, axis=0)), bits=codec.config.codebook_nbits)
        for last in (MAX_INDEX, MAX_INDEX - 1, MAX_FRAME):
            socket = await raw(session, url, query=duplex)
            await socket.send_bytes(pack_message(Kind.PCM, last, bytes(2 * hop * 2)))
            await socket.send_bytes(pack_message(Kind.CODES, last, packet))
            named = [event["error"] for event in await events(socket, 2)]
            assert named == ["InputError", "InputError"]
            await socket.close()

    beside_a_neighbour(codec, tmp_path, misbehave)


def test_what_comes_too_fast_is_dropped_oldest_first_and_reported(
    codec: Codec, tmp_path: Path
) -> None:
    hop = codec.config.hop_length

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        socket = await raw(session, url)
        clip = (said(200, codec) * 32768).astype("<i2")
        await socket.send_bytes(pack_message(Kind.PCM, 0, clip.tobytes()))
        await socket.send_bytes(pack_message(Kind.PCM, 100, clip[:hop].tobytes()))
        *dropped, error = await events(socket, 2)
        while error["type"] == "Dropped":
            dropped.append(error)
            (error,) = await events(socket, 1)
        assert error["error"] == "InputError"
        assert {each["where"] for each in dropped} == {"in"}
        gone = {each["first"] + at for each in dropped for at in range(each["count"])}
        assert len(gone) == sum(each["count"] for each in dropped) > 100
        await socket.send_str(pack_event("CloseStream"))
        came = set()
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                came.add(int.from_bytes(message.data[1:5], "little"))
        await socket.close()
        assert set(range(192, 200)) <= came
        assert not came & gone

    beside_a_neighbour(codec, tmp_path, misbehave)


def test_a_client_that_does_not_wait_hears_of_every_frame_once_or_of_its_loss(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (_, url),
            StreamClient(url, bandwidth_kbps=KBPS, live=True) as stream,
        ):
            frames, _ = await asyncio.gather(
                all_of(stream), push(stream, said(300, codec), codec.config.hop_length)
            )
            gone = {each.first + at for each in stream.dropped for at in range(each.count)}
            for given in (
                [frame.index for frame in frames if frame.codes is not None],
                [frame.index for frame in frames if frame.audio is not None],
            ):
                assert given == sorted(set(given))
                assert set(given) | gone == set(range(300))
            assert gone

    asyncio.run(run())


def test_a_flood_of_messages_or_of_events_is_hung_up_on(codec: Codec, tmp_path: Path) -> None:
    limits = replace(QUICK, messages_per_s=200, message_burst=300)

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        for events_alone in (False, True):
            socket = await raw(session, url)
            for sample in range(2000):
                try:
                    if events_alone:
                        await socket.send_str(pack_event("Finalize"))
                    else:
                        index = sample // codec.config.hop_length
                        await socket.send_bytes(pack_message(Kind.PCM, index, bytes(2)))
                except ConnectionError:
                    break
            assert await closed_with(socket) in (4004, None)

    beside_a_neighbour(codec, tmp_path, misbehave, limits=limits)


def test_who_is_silent_is_hung_up_on_and_who_keeps_alive_is_not(
    codec: Codec, tmp_path: Path
) -> None:
    limits = replace(QUICK, silent_s=0.4)

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        silent, alive = await raw(session, url), await raw(session, url)
        for _ in range(8):
            await alive.send_str(pack_event("KeepAlive"))
            await asyncio.sleep(0.1)
        assert await closed_with(silent) == 4002
        await alive.send_bytes(pack_message(Kind.PCM, 0, bytes(2 * codec.config.hop_length)))
        assert (await alive.receive(5.0)).type == aiohttp.WSMsgType.BINARY
        await alive.close()

    beside_a_neighbour(codec, tmp_path, misbehave, limits=limits)


def test_a_session_that_lasts_too_long_is_ended(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        limits = replace(QUICK, session_s=0.2)
        async with (
            serving(codec, tmp_path, limits=limits) as (_, url),
            aiohttp.ClientSession() as session,
        ):
            assert await closed_with(await raw(session, url)) == 4003

    asyncio.run(run())


@pytest.mark.parametrize("stuck_s", [0.6, 60.0])
def test_a_reader_that_is_too_slow_is_told_what_it_lost_or_cut(
    codec: Codec, tmp_path: Path, stuck_s: float
) -> None:
    """A message that the client does not take holds up those behind it."""
    limits = replace(QUICK, slow_s=1.0)

    async def run() -> None:
        async with (
            serving(codec, tmp_path, limits=limits) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            socket = await raw(session, url)
            (connection,) = server.sessions._clients.values()
            assert isinstance(connection, Connection)
            send = connection._socket.send_bytes

            async def slowly(data: bytes) -> None:
                connection._socket.send_bytes = send  # type: ignore[method-assign]
                await asyncio.sleep(stuck_s)
                await send(data)

            connection._socket.send_bytes = slowly  # type: ignore[assignment, method-assign]
            frame = bytes(2 * codec.config.hop_length)
            for index in range(40):
                await socket.send_bytes(pack_message(Kind.PCM, index, frame))
                await asyncio.sleep(0.01)
            if stuck_s < limits.slow_s:
                (dropped,) = await events(socket, 1)
                assert (dropped["where"], dropped["first"]) == ("out", 1)
                await socket.close()
            else:
                assert await closed_with(socket) is None
            while server.sessions.count:
                await asyncio.sleep(0.01)
            cut = b'closed_total{code="4001"} 1.0' in server.metrics.text()
            assert cut == (stuck_s > limits.slow_s)

    asyncio.run(run())


def test_a_client_that_is_killed_frees_its_slot(codec: Codec, tmp_path: Path) -> None:
    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        for _ in range(10):
            socket = await raw(session, url)
            await socket.send_bytes(pack_message(Kind.PCM, 0, bytes(100)))
            connection = socket._response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.abort()

    beside_a_neighbour(codec, tmp_path, misbehave, slots=12)


def test_sessions_that_come_and_go_leave_nothing_behind(codec: Codec, tmp_path: Path) -> None:
    import gc

    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            counts = []
            for _ in range(3):
                for _ in range(20):
                    socket = await raw(session, url)
                    await socket.send_bytes(pack_message(Kind.PCM, 0, bytes(64)))
                    await socket.send_str(pack_event("CloseStream"))
                    assert await closed_with(socket) == 1000
                while server.sessions.count:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                gc.collect()
                counts.append(len(gc.get_objects()))
            assert counts[2] - counts[1] < 200
            assert not server.sessions._clients
            assert not server.sessions.engine_loop._streams

    asyncio.run(run())


def test_a_clock_that_jumps_changes_nothing(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the clock that rises is used for sessions; the wall's may be set at any time."""
    import time

    wall = time.time
    shift = [0.0]
    monkeypatch.setattr(time, "time", lambda: wall() + shift[0])

    async def misbehave(session: aiohttp.ClientSession, url: str) -> None:
        for jump in (3600.0, -86_400.0, 0.0):
            await asyncio.sleep(0.1)
            shift[0] = jump
            answer = await session.post(url + TICKET_PATH)
            ticket = (await answer.json())["ticket"]
            offered = (SUBPROTOCOL, TICKET + ticket)
            assert await status(session, url, protocols=offered) == 101

    beside_a_neighbour(codec, tmp_path, misbehave)


def test_the_figures_and_states_are_told(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path, slots=2) as (server, url),
            aiohttp.ClientSession() as session,
        ):
            async with StreamClient(url, bandwidth_kbps=KBPS) as stream:
                await asyncio.gather(all_of(stream), push(stream, said(20, codec), 50))
                info = await (await session.get(url + "/v1/info")).json()
                assert info["capacity"] == 2
                assert info["protocol"] == SUBPROTOCOL
            text = await (await session.get(url + "/metrics")).text()
            for name in (
                "sessions", "slots", "sessions_refused_total", "step_seconds_bucket",
                "frame_latency_seconds_bucket", "deadline_misses_total", "batch_size_bucket",
                "frames_total", "frames_dropped_total", "concealed_frames_total",
                "snapshot_seconds_bucket", "session_seconds_bucket",
            ):  # fmt: skip
                assert f"encodec_rt_{name}" in text
            assert 'frames_total{direction="in"} 20.0' in text
            server.sessions.engine_loop.stop()
            assert (await session.get(url + "/livez")).status == 503
            assert (await session.get(url + "/readyz")).status == 503
            server.sessions.engine_loop.start = lambda: None  # type: ignore[method-assign]

    asyncio.run(run())
