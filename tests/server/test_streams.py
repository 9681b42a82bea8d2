"""What goes through the server is what streams give: codes, audio, starts, ends, bandwidths."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from encodec_rt.client import ServedFrame, StreamClient
from encodec_rt.server.protocol import pack_event
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Audio
from tests.support.serving import all_of, audio_of, codes_of, push, raw, said, serving, tiny_codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


async def through(url: str, audio: Audio, piece: int, **options: Any) -> list[ServedFrame]:
    """What comes of ``audio`` that is sent in pieces."""
    async with StreamClient(url, **options) as stream:
        frames, _ = await asyncio.gather(all_of(stream), push(stream, audio, piece))
        assert not stream.dropped
        assert not stream.errors
        return frames


@pytest.mark.parametrize("start", ["primed", "exact", "zero"])
def test_ragged_pushes_give_the_codes_of_a_stream(
    codec: Codec, tmp_path: Path, start: Start
) -> None:
    kbps = codec.config.target_bandwidths

    async def run() -> None:
        async with serving(codec, tmp_path) as (_, url):
            clips = [said(40 + 0.3 * at, codec, at) for at in range(4)]
            chosen = (kbps[0], kbps[1], kbps[2], kbps[2])
            jobs = [
                through(url, clip, piece, mode="encode", bandwidth_kbps=each, start=start)
                for clip, piece, each in zip(clips, (3, 8, 21, 64), chosen, strict=True)
            ]
            given = await asyncio.gather(*jobs)
            for clip, frames, each in zip(clips, given, chosen, strict=True):
                stream = codec.stream_encoder(each, start=start)
                wanted = np.concatenate([stream.push(clip), stream.flush()])
                assert np.array_equal(codes_of(frames), wanted)

    asyncio.run(run())


@pytest.mark.parametrize("start", ["primed", "exact"])
@pytest.mark.parametrize("changes", [{}, {"trim_right_ratio": 0.4}, {"audio_channels": 2}])
def test_an_echo_gives_the_audio_of_its_codes(
    tmp_path: Path, start: Start, changes: dict[str, object]
) -> None:
    codec = tiny_codec(**changes)
    kbps, channels = codec.config.target_bandwidths[1], codec.config.audio_channels

    async def run() -> None:
        async with serving(codec, tmp_path) as (_, url):
            for length in (0.4, 3.5, 30.0, 30.6):
                clip = said(length, codec)
                if channels == 2:
                    clip = np.stack([clip, clip[::-1]])
                frames = await through(url, clip, 13, bandwidth_kbps=kbps, start=start)
                encoder = codec.stream_encoder(kbps, start=start)
                decoder = codec.stream_decoder(kbps, start=start)
                codes = np.concatenate([encoder.push(clip), encoder.flush()])
                parts = [decoder.push(codes), decoder.flush(clip.shape[-1])]
                wanted = np.concatenate(parts, axis=-1)[..., : clip.shape[-1]]
                assert np.array_equal(codes_of(frames), codes)
                heard = audio_of(frames)
                assert heard.shape == wanted.shape
                np.testing.assert_allclose(heard, wanted.clip(-1, 1), atol=2 / 32768)

    asyncio.run(run())


@pytest.mark.parametrize("start", ["primed", "exact"])
def test_a_vocoder_gives_the_audio_of_codes_and_conceals_what_is_lost(
    codec: Codec, tmp_path: Path, start: Start
) -> None:
    kbps = codec.config.target_bandwidths[-1]
    codes = codec.encode(said(40, codec), kbps)
    lost = {20, 21, 33}

    async def run() -> None:
        async with serving(codec, tmp_path) as (server, url):
            for gone in (set(), lost):
                options: dict[str, Any] = {"mode": "decode", "bandwidth_kbps": kbps, "start": start}
                async with StreamClient(url, **options) as stream:

                    async def speak(stream: StreamClient = stream, gone: set[int] = gone) -> None:
                        for index, frame in enumerate(codes):
                            await stream.send_codes(None if index in gone else frame)
                        await stream.finish()

                    frames, _ = await asyncio.gather(all_of(stream), speak())
                heard = audio_of(frames)
                decoder = codec.stream_decoder(kbps, start=start)
                wanted = np.concatenate([decoder.push(codes), decoder.flush()])
                assert heard.shape == wanted.shape
                before = 20 * codec.config.hop_length
                same = slice(0, before if gone else None)
                np.testing.assert_allclose(heard[same], wanted[same].clip(-1, 1), atol=2 / 32768)
            assert b"encodec_rt_concealed_frames_total 3.0" in server.metrics.text()

    asyncio.run(run())


def test_both_directions_of_a_duplex_stream_are_independent(codec: Codec, tmp_path: Path) -> None:
    kbps = codec.config.target_bandwidths[-1]
    mine, theirs = said(30, codec, 1), codec.encode(said(25, codec, 2), kbps)

    async def run() -> None:
        async with (
            serving(codec, tmp_path) as (_, url),
            StreamClient(url, mode="duplex", bandwidth_kbps=kbps) as stream,
        ):

            async def speak() -> None:
                for frame in theirs:
                    await stream.send_codes(frame)

            frames, _ = await asyncio.gather(all_of(stream), _then(speak(), push(stream, mine, 24)))
            encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
            assert np.array_equal(codes_of(frames), encoder.push(mine))
            np.testing.assert_allclose(
                audio_of(frames), decoder.push(theirs).clip(-1, 1), atol=2 / 32768
            )

    asyncio.run(run())


async def _then(*jobs: Coroutine[Any, Any, None]) -> None:
    for job in jobs:
        await job


def test_a_stream_that_has_ended_is_closed_once_the_client_has_answered(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("connection", "websockets"):
        monkeypatch.setattr(f"encodec_rt.server.{module}.ANSWER_S", 60.0)

    async def run() -> None:
        async with serving(codec, tmp_path) as (_, url), aiohttp.ClientSession() as session:
            socket = await raw(session, url)
            await socket.send_str(pack_event("CloseStream"))
            while (message := await socket.receive(20.0)).type != aiohttp.WSMsgType.CLOSE:
                pass
            assert message.data == 1000
            await asyncio.sleep(0.1)  # A server that does not wait is gone by now.
            await socket.close()
            assert socket.exception() is None
            assert socket.close_code == 1000

    asyncio.run(run())
