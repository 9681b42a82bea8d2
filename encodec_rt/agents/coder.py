"""An agent's end of a conversation in codes: PCM for the framework, messages as servers send them.

A message is a binary one of ``encodec-rt.v1`` (docs/server.md): kind, frame index and a packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import soxr

from encodec_rt.bitstream.packet import MAX_FRAMES, Packet, encode_packet, parse_packet
from encodec_rt.errors import InputError, PacketError
from encodec_rt.pcm import to_int16
from encodec_rt.server.protocol import Kind, pack_message, parse_message
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.conceal import Concealer

MAX_CONCEALED_FRAMES = 8
"""The longest gap that is concealed; the rest of a longer one is left out."""

Result = TypeVar("Result")


class AgentCoder:
    """Both directions of one conversation, on their own thread.

    Each direction is one continuous stream.
    """

    def __init__(self, codec: Codec, bandwidth_kbps: float = 6.0) -> None:
        """Raises ConfigError for a bandwidth the model lacks, InputError for a stereo model."""
        config = codec.config
        if config.audio_channels != 1:
            raise InputError("agents need a mono model; use one such as 'default'")
        self.rate_hz = config.sampling_rate
        self._bits, self._hop = config.codebook_nbits, config.hop_length
        self._encoder = codec.stream_encoder(bandwidth_kbps)
        self._books = self._encoder.codebooks
        self._concealer = Concealer(codec.stream_decoder(bandwidth_kbps))
        self._sent = self._heard = 0
        self._to_model: tuple[int, soxr.ResampleStream | None] = (self.rate_hz, None)
        self._from_model: tuple[int, soxr.ResampleStream | None] = (self.rate_hz, None)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encodec-rt-agent")

    async def encode(self, pcm: bytes, rate_hz: int, channels: int = 1) -> list[bytes]:
        """PCM s16le, interleaved, of any length -> the messages of the frames that it completes.

        Each has up to four frames. Raises InputError for half a sample.
        """
        return await self._compute(lambda: self._encode(pcm, rate_hz, channels))

    async def decode(self, message: bytes, rate_hz: int) -> bytes:
        """A message -> mono PCM s16le; frames lost before it are concealed.

        Raises PacketError for what is not a message of codes, or comes after its time.
        """
        return await self._compute(lambda: self._decode(message, rate_hz))

    async def _compute(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """End the thread, after its current work."""
        self._worker.shutdown(wait=False)

    def _encode(self, pcm: bytes, rate_hz: int, channels: int) -> list[bytes]:
        if len(pcm) % (2 * channels):
            raise InputError(f"{len(pcm)} bytes of PCM; a sample takes {2 * channels}")
        samples = np.frombuffer(pcm, "<i2").reshape(-1, channels).mean(axis=1, dtype=np.float32)
        self._to_model = _from_to(self._to_model, rate_hz, rate_hz, self.rate_hz)
        codes = self._encoder.push(_resampled(self._to_model[1], samples / np.float32(32768)))
        messages = []
        for at in range(0, len(codes), MAX_FRAMES):
            some = codes[at : at + MAX_FRAMES]
            payload = encode_packet(Packet(some), bits=self._bits)
            messages.append(pack_message(Kind.CODES, self._sent, payload))
            self._sent += len(some)
        return messages

    def _decode(self, message: bytes, rate_hz: int) -> bytes:
        kind, index, payload = parse_message(message)
        if kind is not Kind.CODES:
            raise PacketError("a message of PCM; codes are expected")
        packet = parse_packet(payload, bits=self._bits, max_codebooks=self._books)
        if index < self._heard:
            raise PacketError(f"codes of frame {index}; frame {self._heard} comes next")
        lost = min(index - self._heard, MAX_CONCEALED_FRAMES)
        heard = [self._concealer.play(None) for _ in range(lost)]
        heard += [self._concealer.play(codes[None]) for codes in packet.codes]
        self._heard = index + len(packet.codes)
        self._from_model = _from_to(self._from_model, rate_hz, self.rate_hz, rate_hz)
        samples = _resampled(self._from_model[1], np.concatenate(heard))
        return to_int16(samples).astype("<i2").tobytes()


def _from_to(
    known: tuple[int, soxr.ResampleStream | None], outside_hz: int, from_hz: int, to_hz: int
) -> tuple[int, soxr.ResampleStream | None]:
    """The resampler for an outside rate; a new one only if the rate has changed."""
    if known[0] == outside_hz:
        return known
    same = from_hz == to_hz
    return outside_hz, None if same else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")


def _resampled(stream: soxr.ResampleStream | None, samples: Audio) -> Audio:
    return samples if stream is None else stream.resample_chunk(samples)
