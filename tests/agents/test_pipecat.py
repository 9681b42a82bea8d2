"""pipecat's frames as codes; runs where pipecat is, whose pins clash with ours."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from encodec_rt.errors import InputError
from encodec_rt.pcm import to_int16
from encodec_rt.streaming.codec import Codec
from tests.support.serving import said, tiny_codec

REASON = "pipecat-ai is not installed; it wants older releases of packages that the tests use"
frames: Any = pytest.importorskip("pipecat.frames.frames", reason=REASON)
KBPS = 1.616


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


def test_what_the_bot_says_reaches_the_caller_and_back_as_codes(codec: Codec) -> None:
    from encodec_rt.agents.pipecat import CodesSerializer

    clip, rate_hz = said(40, codec), codec.sampling_rate
    pcm = to_int16(clip).astype("<i2").tobytes()

    async def run() -> tuple[int, bytes]:
        bot, caller = CodesSerializer(codec, KBPS), CodesSerializer(codec, KBPS)
        await caller.setup(SimpleNamespace(audio_in_sample_rate=rate_hz))
        sent, heard = 0, b""
        for at in range(0, len(pcm), 50):
            frame = frames.OutputAudioRawFrame(pcm[at : at + 50], rate_hz, 1)
            message = await bot.serialize(frame)
            if message is None:
                continue
            sent += len(message)
            got = await caller.deserialize(message)
            assert isinstance(got, frames.InputAudioRawFrame)
            assert (got.sample_rate, got.num_channels) == (rate_hz, 1)
            heard += got.audio
        return sent, heard

    sent, heard = asyncio.run(run())
    codes = codec.stream_encoder(KBPS).push(clip)
    wanted = to_int16(codec.stream_decoder(KBPS).push(codes))
    np.testing.assert_allclose(np.frombuffer(heard, "<i2"), wanted, atol=2)
    assert sent < len(pcm)


def test_interruptions_are_told_and_nothing_else_ends_the_connection(codec: Codec) -> None:
    from encodec_rt.agents.pipecat import CodesSerializer

    async def run() -> None:
        serializer = CodesSerializer(codec, KBPS)
        assert await serializer.serialize(frames.InterruptionFrame()) == '{"type":"Interrupted"}'
        assert await serializer.serialize(frames.TextFrame("hello")) is None
        for wrong in ("{}", b"", b"\x02garbage", b"\x01\0\0\0\0ab"):
            assert await serializer.deserialize(wrong) is None
        second = frames.OutputAudioRawFrame(bytes(2 * codec.sampling_rate), codec.sampling_rate, 1)
        with pytest.raises(InputError, match="audio_out_10ms_chunks"):
            await serializer.serialize(second)

    asyncio.run(run())
