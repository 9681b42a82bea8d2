"""An agent's audio goes out as the codes of one stream and comes back, at any rate."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from encodec_rt.agents.coder import AgentCoder
from encodec_rt.bitstream.packet import Packet, encode_packet, parse_packet
from encodec_rt.errors import InputError, PacketError
from encodec_rt.pcm import to_int16
from encodec_rt.server.protocol import Kind, pack_message, parse_message
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support.serving import said, tiny_codec

KBPS = 1.616


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


def pcm_of(audio: Audio) -> bytes:
    return to_int16(audio).astype("<i2").tobytes()


def messages_of(codes: Codes, bits: int) -> list[bytes]:
    return [
        pack_message(Kind.CODES, at, encode_packet(Packet(frame[None]), bits=bits))
        for at, frame in enumerate(codes)
    ]


def test_messages_hold_the_codes_of_a_stream_whatever_the_pieces(codec: Codec) -> None:
    clip, rate_hz = said(30, codec), codec.sampling_rate
    coder = AgentCoder(codec, KBPS)

    async def run() -> list[bytes]:
        sent: list[bytes] = []
        for at in range(0, len(clip), 37):
            sent += await coder.encode(pcm_of(clip[at : at + 37]), rate_hz)
        return sent

    sent = asyncio.run(run())
    codes: list[Codes] = []
    for message in sent:
        kind, index, payload = parse_message(message)
        assert (kind, index) == (Kind.CODES, sum(len(each) for each in codes))
        codes.append(parse_packet(payload, bits=codec.config.codebook_nbits).codes)
    assert np.array_equal(np.concatenate(codes), codec.stream_encoder(KBPS).push(clip))
    coder.close()


def test_audio_is_that_of_a_stream_and_gaps_are_filled(codec: Codec) -> None:
    codes, rate_hz = codec.stream_encoder(KBPS).push(said(30, codec)), codec.sampling_rate
    messages = messages_of(codes, codec.config.codebook_nbits)
    coder = AgentCoder(codec, KBPS)

    async def run() -> bytes:
        heard = b""
        for index, message in enumerate(messages):
            if index not in (20, 21):
                heard += await coder.decode(message, rate_hz)
        with pytest.raises(PacketError, match="comes next"):
            await coder.decode(messages[3], rate_hz)
        return heard

    heard = np.frombuffer(asyncio.run(run()), "<i2")
    wanted = to_int16(codec.stream_decoder(KBPS).push(codes))
    before = 20 * codec.config.hop_length
    assert len(heard) == len(wanted)
    np.testing.assert_allclose(heard[:before], wanted[:before], atol=2)
    coder.close()


def test_other_rates_and_two_channels_are_resampled(codec: Codec) -> None:
    rate_hz = codec.sampling_rate
    coder = AgentCoder(codec, KBPS)

    async def run() -> tuple[int, int]:
        silence = bytes(10 * 2 * 2 * 2 * rate_hz)
        sent = await coder.encode(silence, 2 * rate_hz, channels=2)
        heard = [await coder.decode(message, rate_hz // 2) for message in sent]
        return len(sent), sum(map(len, heard)) // 2

    sent, samples = asyncio.run(run())
    # A resampler holds some back for its filter.
    frames = 10 * codec.config.frame_rate
    assert 0.8 * frames <= 4 * sent <= frames
    assert 0.6 * 10 * rate_hz / 2 <= samples <= 10 * rate_hz / 2
    coder.close()


def test_what_is_no_message_of_codes_is_refused_by_name(codec: Codec) -> None:
    coder = AgentCoder(codec, KBPS)

    async def run() -> None:
        for wrong in (b"", b"\x07\0\0\0\0a", pack_message(Kind.PCM, 0, b"ab"), b"\x02\0\0\0\0\xff"):
            with pytest.raises(PacketError):
                await coder.decode(wrong, 8000)
        with pytest.raises(InputError, match="a sample takes 2"):
            await coder.encode(b"abc", 8000)

    asyncio.run(run())
    coder.close()
    with pytest.raises(InputError, match="mono model"):
        AgentCoder(tiny_codec(audio_channels=2), KBPS)
