"""A live call to oneself: audio through encoder, packets and decoder, frame by frame, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from encodec_rt.audio import Audio
from encodec_rt.bitstream.packet import Packet, encode_packet, parse_packet
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start

WARM_UP_FRAMES = 20


@dataclass
class Loopback:
    """What became of the audio, and of each frame: times in milliseconds.

    ``encode_ms`` and ``decode_ms`` include packing and parsing. ``late_ms`` is how long after its
    last sample was there a frame had been decoded; a frame that takes longer than ``frame_ms``
    has missed its deadline. ``start_up_ms`` runs from the first sample in to the first one out.
    """

    frame_ms: float
    audio: Audio
    encode_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    packets: int = 0
    payload_bytes: int = 0
    start_up_ms: float = 0.0

    @property
    def both_ms(self) -> list[float]:
        """Encoding and decoding of each frame together."""
        return [one + other for one, other in zip(self.encode_ms, self.decode_ms, strict=True)]

    @property
    def misses(self) -> int:
        """Frames that were not done when the next one was there."""
        return sum(late > self.frame_ms for late in self.late_ms)

    @property
    def real_time_factor(self) -> float:
        """Time spent computing as a share of the audio's length; below 1 is live."""
        return sum(self.both_ms) / (self.frame_ms * len(self.encode_ms))


def loop_back(
    codec: Codec,
    audio: Audio,
    *,
    bandwidth_kbps: float = 6.0,
    start: Start = "primed",
    paced: bool = True,
    on_frame: Callable[[Loopback], None] | None = None,
) -> Loopback:
    """Run ``audio`` [channels, n], at the model's rate, through one packet per frame.

    ``paced`` hands in each frame only when a microphone would have it; else frames follow at once,
    and a frame counts as late by the time it took. ``on_frame`` is called after each frame.
    """
    config = codec.config
    hop = config.hop_length
    frame_s = hop / config.sampling_rate
    bits = config.codebook_nbits
    warm_up(codec, bandwidth_kbps, start)
    encoder = codec.stream_encoder(bandwidth_kbps, start=start)
    decoder = codec.stream_decoder(bandwidth_kbps, start=start)
    run = Loopback(1000 * frame_s, audio[:, :0])
    pieces: list[Audio] = []

    def pack(codes: np.ndarray) -> list[bytes]:
        return [encode_packet(Packet(codes[i : i + 1]), bits=bits) for i in range(len(codes))]

    def play(payloads: list[bytes]) -> None:
        for payload in payloads:
            pieces.append(np.atleast_2d(decoder.push(parse_packet(payload, bits=bits).codes)))
            run.packets += 1
            run.payload_bytes += len(payload)

    began = time.perf_counter()
    for index in range(audio.shape[1] // hop):
        due = began + (index + 1) * frame_s
        if paced:
            time.sleep(max(0.0, due - time.perf_counter()))
        start_time = time.perf_counter()
        payloads = pack(encoder.push(audio[:, index * hop : (index + 1) * hop]))
        encoded = time.perf_counter()
        play(payloads)
        done = time.perf_counter()
        run.encode_ms.append(1000 * (encoded - start_time))
        run.decode_ms.append(1000 * (done - encoded))
        run.late_ms.append(1000 * (done - (due if paced else start_time)))
        if not run.start_up_ms and any(piece.shape[1] for piece in pieces):
            run.start_up_ms = 1000 * (index + 1) * frame_s + run.late_ms[-1]
        if on_frame is not None:
            on_frame(run)
    rest = audio[:, audio.shape[1] // hop * hop :]
    play(pack(encoder.push(rest)))
    play(pack(encoder.flush()))
    pieces.append(np.atleast_2d(decoder.flush(samples=audio.shape[1])))
    run.audio = np.concatenate(pieces, axis=1)[:, : audio.shape[1]]
    return run


def warm_up(codec: Codec, bandwidth_kbps: float, start: Start) -> None:
    """Let everything that is made on first use be made, on streams that are thrown away."""
    silence = np.zeros((codec.config.audio_channels, codec.config.hop_length), np.float32)
    encoder = codec.stream_encoder(bandwidth_kbps, start=start)
    decoder = codec.stream_decoder(bandwidth_kbps, start=start)
    for _ in range(WARM_UP_FRAMES):
        decoder.push(encoder.push(silence))
