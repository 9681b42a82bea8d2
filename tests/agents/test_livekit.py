"""A LiveKit agent's ears and mouth; runs where LiveKit Agents is, whose pins clash with ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from encodec_rt.agents.coder import AgentCoder
from encodec_rt.pcm import to_int16
from encodec_rt.streaming.codec import Codec
from tests.support.serving import said, tiny_codec

REASON = "livekit-agents is not installed; it wants older releases of packages that the tests use"
pytest.importorskip("livekit.agents", reason=REASON)
KBPS = 1.616


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


def frame_of(pcm: bytes, rate_hz: int) -> Any:
    from livekit import rtc

    return rtc.AudioFrame(pcm, rate_hz, 1, len(pcm) // 2)


def test_what_the_mouth_says_the_ears_hear(codec: Codec) -> None:
    from encodec_rt.agents.livekit import CodesInput, CodesOutput

    clip, rate_hz = said(40, codec), codec.sampling_rate
    pcm = to_int16(clip).astype("<i2").tobytes()

    async def run() -> tuple[Any, bytes]:
        sent: list[bytes] = []

        async def send(message: bytes) -> None:
            sent.append(message)

        async def garbled() -> AsyncIterator[bytes]:
            yield b"garbage"
            for message in sent:
                yield message

        output = CodesOutput(AgentCoder(codec, KBPS), send)
        for at in range(0, len(pcm), 100):
            await output.capture_frame(frame_of(pcm[at : at + 100], rate_hz))
        output.flush()
        finished = await asyncio.wait_for(output.wait_for_playout(), 60)
        await output.aclose()
        ears = CodesInput(AgentCoder(codec, KBPS), garbled())
        heard = [bytes(frame.data) async for frame in ears]
        return finished, b"".join(heard)

    finished, heard = asyncio.run(run())
    assert not finished.interrupted
    assert finished.playback_position == pytest.approx(len(clip) / rate_hz)
    codes = codec.stream_encoder(KBPS).push(clip)
    wanted = to_int16(codec.stream_decoder(KBPS).push(codes))
    np.testing.assert_allclose(np.frombuffer(heard, "<i2"), wanted, atol=2)


def test_an_interruption_takes_back_what_was_not_sent(codec: Codec) -> None:
    from encodec_rt.agents.livekit import CodesOutput

    rate_hz = codec.sampling_rate

    async def run() -> tuple[Any, int]:
        sent: list[bytes] = []
        first = asyncio.Event()

        async def send(message: bytes) -> None:
            sent.append(message)
            first.set()

        output = CodesOutput(AgentCoder(codec, KBPS), send)
        await output.capture_frame(frame_of(bytes(2 * 3600 * rate_hz), rate_hz))
        output.flush()
        await asyncio.wait_for(first.wait(), 60)
        output.clear_buffer()
        finished = await asyncio.wait_for(output.wait_for_playout(), 60)
        count = len(sent)
        await output.aclose()
        return finished, count

    finished, count = asyncio.run(run())
    assert finished.interrupted
    assert finished.playback_position < 3600
    assert count < 3600 * codec.config.frame_rate / 4
