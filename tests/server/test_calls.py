"""A call over WebRTC is a session too: admitted, limited, counted, and its frames are exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from encodec_rt.errors import ConfigError, LinkError
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.channel_transport import ChannelTransport
from encodec_rt.link.dialling import DialAnswer, SignallingClient
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.pcm import to_int16
from encodec_rt.server.call import HOPS_AHEAD
from encodec_rt.server.call_stream import CallStream, WaitingHop
from encodec_rt.server.queues import FrameQueue
from encodec_rt.server.service import StreamServer
from encodec_rt.server.stepper import Stepper
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.jitter import PlayoutSlot
from encodec_rt.voice.receiver import HopPlan
from tests.support.serving import QUICK, said, serving, tiny_codec

KBPS = 1.616
TOKEN = "a-token-that-nobody-will-ever-guess-1234"
UNMET = "v=0\na=fingerprint:sha-256 0"
"""An offer that has what is looked at first."""
OPTIONS = CallOptions(bandwidth_kbps=KBPS, dtx=False)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


class Speaking(SilentSource):
    """A microphone before which somebody speaks without end."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self._hops = said(200, codec).reshape(-1, 1, codec.config.hop_length)
        self._at = 0

    async def read(self) -> Audio | None:
        await super().read()
        self._at += 1
        hop: Audio = self._hops[self._at % len(self._hops)]
        return hop


class Listening(NullSink):
    """Remembers how much sounded of what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.sounding = 0

    def write(self, audio: Audio) -> None:
        self.sounding += bool(np.abs(audio).max() > 1e-4)


class Caller:
    """One who has called the server."""

    def __init__(self, call: Call, heard: Listening, answer: DialAnswer) -> None:
        self.call, self.heard, self.answer = call, heard, answer
        self.running = asyncio.ensure_future(call.run())


@asynccontextmanager
async def calling(
    codec: Codec, url: str, token: str | None = None, *, channel: bool = False
) -> AsyncIterator[Caller]:
    """A call to the server, hung up at the end."""
    heard = Listening(codec)
    call = Call(codec, Speaking(codec), heard, replace(OPTIONS, channel=channel))
    try:
        answer = await SignallingClient(url, token=token).dial(await call.offer())
        await call.accept(answer.answer)
        caller = Caller(call, heard, answer)
    except BaseException:
        await call.close()
        raise
    try:
        yield caller
    finally:
        await call.close()
        await asyncio.wait({caller.running}, timeout=30)


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    for _ in range(6000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def count(server: StreamServer, name: str, **labels: str) -> float:
    """A figure of the server's."""
    value = server.metrics.registry.get_sample_value(name, labels)
    return 0.0 if value is None else value


def test_a_caller_hears_itself_and_the_slot_is_free_once_it_hangs_up(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with serving(codec, tmp_path, slots=2, calls=2) as (server, url):
            async with calling(codec, url) as caller:
                await until(lambda: caller.heard.sounding > 30)
                assert server.sessions.count == 1
                assert not caller.running.done()
            await until(lambda: not server.sessions.count)
            text = server.metrics.text()
            assert b'sessions_closed_total{code="1000"} 1.0' in text
            assert count(server, "encodec_rt_step_seconds_count") > 30
            came, went = (
                count(server, "encodec_rt_frames_total", direction=each) for each in ("in", "out")
            )
            assert 30 < went <= came <= went + HOPS_AHEAD
            assert not count(server, "encodec_rt_frames_dropped_total", where="in")
            assert not server.sessions.engine_loop._streams
            assert not list(tmp_path.glob("*.session"))

    asyncio.run(run())


def test_two_callers_and_a_hang_up_by_the_address_of_the_call(codec: Codec, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path, calls=2, token=TOKEN) as (server, url),
            calling(codec, url, TOKEN) as one,
            calling(codec, url, TOKEN) as other,
        ):
            await until(lambda: min(one.heard.sounding, other.heard.sounding) > 10)
            await SignallingClient(url, token=TOKEN).hang_up(one.answer.location)
            await until(lambda: server.sessions.count == 1)
            heard = other.heard.sounding
            await until(lambda: other.heard.sounding > heard + 10)

    asyncio.run(run())


def test_a_call_is_admitted_as_any_session_is(codec: Codec, tmp_path: Path) -> None:
    async def post(url: str, **options: Any) -> aiohttp.ClientResponse:
        async with aiohttp.ClientSession() as session:
            headers = {"Content-Type": "application/sdp", **options.pop("headers", {})}
            return await session.post(url + "/call", data=UNMET, headers=headers, **options)

    bearer = {"Authorization": f"Bearer {TOKEN}"}

    async def run() -> None:
        async with serving(codec, tmp_path, slots=1, calls=3, token=TOKEN) as (server, url):
            assert (await post(url)).status == 401
            assert (await post(url, headers=bearer | {"Origin": "https://x.example"})).status == 403
            async with calling(codec, url, TOKEN) as caller:
                await until(lambda: caller.heard.sounding > 5)
                full = await post(url, headers=bearer)
                assert (full.status, full.headers["Retry-After"]) == (503, "2")
                server.sessions.is_draining = True
                with pytest.raises(LinkError, match="503"):
                    async with calling(codec, url, TOKEN):
                        pass
            await until(lambda: not server.sessions.count)
        async with serving(codec, tmp_path) as (_, url):
            assert (await post(url)).status == 404

    asyncio.run(run())


def test_a_call_of_another_model_or_that_never_comes_leaves_the_slot_free(
    codec: Codec, tmp_path: Path
) -> None:
    other = tiny_codec(num_filters=6)

    async def run() -> None:
        async with serving(codec, tmp_path, slots=1, calls=1) as (server, url):
            with pytest.raises(LinkError, match="need the same model"):
                async with calling(other, url):
                    pass
            assert server.sessions.count == 0
            async with calling(codec, url) as caller:
                await until(lambda: caller.heard.sounding > 5)
            await until(lambda: not server.sessions.count)

    asyncio.run(run())


def test_a_drain_hangs_up_on_calls_that_do_not_end_by_themselves(
    codec: Codec, tmp_path: Path
) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path, calls=1) as (server, url),
            calling(codec, url) as caller,
        ):
            await until(lambda: caller.heard.sounding > 5)
            await server.drain()
            assert server.sessions.count == 0
            assert b'closed_total{code="1012"} 1.0' in server.metrics.text()
            await asyncio.wait_for(caller.running, 30)

    asyncio.run(run())


def test_a_caller_of_whom_nothing_is_heard_is_hung_up_on(codec: Codec, tmp_path: Path) -> None:
    limits = replace(QUICK, silent_s=1.0)

    async def run() -> None:
        async with (
            serving(codec, tmp_path, calls=1, limits=limits) as (server, url),
            calling(codec, url) as caller,
        ):
            await until(lambda: caller.heard.sounding > 5)
            caller.call.transport.send = lambda packet: None  # type: ignore[method-assign]
            await until(lambda: not server.sessions.count)
            assert b'closed_total{code="4002"} 1.0' in server.metrics.text()

    asyncio.run(run())


@pytest.mark.parametrize("channel", [False, True], ids=["RTP", "data channel"])
def test_a_call_goes_on_over_a_new_path(codec: Codec, tmp_path: Path, channel: bool) -> None:
    async def run() -> None:
        async with (
            serving(codec, tmp_path, slots=1, calls=1) as (server, url),
            calling(codec, url, channel=channel) as caller,
        ):
            await until(lambda: caller.heard.sounding > 5)
            offer = await caller.call.renewal_offer()
            client = SignallingClient(url, token=None)
            answer = await client.dial(offer, location=caller.answer.location)
            assert await caller.call.accept_renewal(answer.answer, 30.0)
            heard = caller.heard.sounding
            await until(lambda: caller.heard.sounding > heard + 30)
            assert server.sessions.count == 1
            assert isinstance(caller.call.transport, ChannelTransport) is channel

    asyncio.run(run())


def test_the_page_that_calls_comes_from_the_server_itself(codec: Codec, tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    sdp = {"Content-Type": "application/sdp", **bearer}

    async def run() -> None:
        async with (
            serving(codec, tmp_path, calls=1, token=TOKEN, page=b"a model") as (_, url),
            aiohttp.ClientSession() as http,
        ):
            async with http.get(url + "/") as answer:
                text = await answer.text()
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert 'data-calls="server"' in text
            script, model = (
                text.split(f'{name}="')[1].split('"')[0] for name in ("src", "data-model")
            )
            async with http.get(url + script) as answer:
                assert answer.content_type == "text/javascript"
            async with http.get(url + model) as answer:
                assert answer.status == 401
            async with http.get(url + model, headers=bearer) as answer:
                assert await answer.read() == b"a model"
            async with http.get(url + "/other", headers=bearer) as answer:
                assert answer.status == 404
            # Refused for what it offers, and not for the page that it comes from.
            own = {"Origin": url, **sdp}
            async with http.post(url + "/call", data=UNMET, headers=own) as answer:
                assert answer.status == 400
            async with http.post(
                url + "/call", data=UNMET, headers={**own, "Origin": "https://x.example"}
            ) as answer:
                assert answer.status == 403
        async with (
            serving(codec, tmp_path, calls=1, token=TOKEN) as (_, url),
            aiohttp.ClientSession() as http,
            http.post(url + "/call", data=UNMET, headers={"Origin": url, **sdp}) as answer,
        ):
            assert answer.status == 403
        with pytest.raises(ConfigError, match="needs calls"):
            async with serving(codec, tmp_path, page=b"a model"):
                pass

    asyncio.run(run())


def plan(index: int, codes: Codes | None, *, anew: bool = False) -> HopPlan:
    kind = "lost" if codes is None else "frame"
    frame = None if codes is None else codes[None]
    return HopPlan(PlayoutSlot(kind, index, frame), [], anew)  # type: ignore[arg-type]


def test_codes_go_through_a_slot_as_through_a_decoder_and_an_encoder(codec: Codec) -> None:
    """Beside a neighbour that loses frames and begins anew; both in the same batches."""
    engine = codec.engine(3, KBPS, gather=True)
    silence = codec.stream_decoder(KBPS).silence_latent()
    queues = [(FrameQueue(8), FrameQueue(8)) for _ in range(2)]
    streams = [
        CallStream(key, slot, KBPS, *queues[key], engine, silence)
        for key, slot in enumerate((2, 0))
    ]
    stepper = Stepper(engine, lambda work, done: None)
    sent = [codec.stream_encoder(KBPS).push(said(40, codec, seed)) for seed in (1, 2)]
    came: list[list[Codes]] = [[], []]
    for index in range(40):
        lost = index in (20, 21)
        for key, (_, hops) in enumerate(queues):
            codes = None if key and lost else sent[key][index]
            hops.put(WaitingHop(index, None, 0.0, plan(index, codes)))
        if index == 30:
            streams[1].renewed_at = index
        for output in stepper.step(streams, index / 100):
            assert output.codes is not None
            came[output.key].append(output.codes)
    assert stepper.concealed == 2

    def wanted(codes: Codes) -> Codes:
        heard = codec.stream_decoder(KBPS).push(codes)
        return codec.stream_encoder(KBPS).push(to_int16(heard).astype(np.float32) / 32768.0)

    assert np.array_equal(np.stack(came[0]), wanted(sent[0]))
    assert np.array_equal(np.stack(came[1])[:20], wanted(sent[1][:20]))
    assert np.array_equal(np.stack(came[1])[30:], wanted(sent[1][30:]))
    assert not np.array_equal(np.stack(came[1])[20:30], wanted(sent[1])[20:30])
