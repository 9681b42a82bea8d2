"""Fronts in processes of their own: one engine's codes, slots and figures, and nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encodec_rt.client import StreamClient
from encodec_rt.server.fronts import FrontedServer
from encodec_rt.server.http_service import ServerOptions
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec
from tests.support.serving import QUICK, all_of, audio_of, codes_of, push, said, tiny_codec

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
    limits: SessionLimits = QUICK,
    **options: Any,
) -> AsyncIterator[tuple[FrontedServer, str]]:
    kbps = codec.config.target_bandwidths[-1]
    chosen = ServerOptions(limits=limits, **options)
    server = FrontedServer(codec, slots, kbps, SessionStore(folder), chosen, fronts)
    bound = await server.start("127.0.0.1", 0, None)
    try:
        yield server, f"http://127.0.0.1:{bound}"
    finally:
        await server.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


def test_codes_and_audio_over_two_fronts_are_those_of_streams(codec: Codec, tmp_path: Path) -> None:
    kbps = codec.config.target_bandwidths

    async def run() -> None:
        async with fronted(codec, tmp_path) as (server, url):
            clips = [said(60 + 0.3 * at, codec, at) for at in range(6)]
            streams = [
                StreamClient(url, bandwidth_kbps=kbps[at % 3], start="primed") for at in range(6)
            ]
            for stream in streams:
                await stream.__aenter__()
            assert [len(front.clients) for front in server._fronts.values()] == [3, 3]
            pieces = (3, 8, 21, 64, 1, 13)
            jobs = [push(*each) for each in zip(streams, clips, pieces, strict=True)]
            *given, _ = await asyncio.gather(*map(all_of, streams), asyncio.gather(*jobs))
            for at, (frames, clip) in enumerate(zip(given, clips, strict=True)):
                encoder, decoder = (
                    codec.stream_encoder(kbps[at % 3]),
                    codec.stream_decoder(kbps[at % 3]),
                )
                wanted = np.concatenate([encoder.push(clip), encoder.flush()])
                assert np.array_equal(codes_of(frames), wanted)
                heard = np.concatenate([decoder.push(wanted), decoder.flush()])[: len(clip)]
                np.testing.assert_allclose(audio_of(frames), heard.clip(-1, 1), atol=2 / 32768)
                assert not streams[at].dropped
            for stream in streams:
                await stream.__aexit__(None, None, None)
            await until(lambda: server.sessions.count == 0)
            text = (await server.metrics_text()).decode()
            print(text)

    asyncio.run(run())
