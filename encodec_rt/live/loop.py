"""The codec as a live session uses it: encoder -> packets -> decoder, timed and recorded.

``CodecLoop`` is fed from a microphone, ``loop_back`` runs a whole clip in real time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from encodec_rt.audio import AudioRecording
from encodec_rt.bitstream.packet import MAX_CODEBOOKS, Packet, encode_packet, parse_packet
from encodec_rt.errors import ConfigError
from encodec_rt.live.recording import ContainerRecording, EcdcRecording
from encodec_rt.sound.meter import Timings
from encodec_rt.streaming.codec import Codec, warm_up
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Audio, Codes

CodesRecording = EcdcRecording | ContainerRecording


class CodecLoop:
    """One stream through encoder, packets and decoder, with the time that each step takes."""

    def __init__(
        self,
        codec: Codec,
        bandwidth_kbps: float,
        *,
        decode: bool = True,
    ) -> None:
        """Raises ConfigError for a model or bandwidth that live packets cannot carry."""
        config = codec.config
        if config.audio_channels != 1:
            raise ConfigError(f"audio_channels={config.audio_channels}; live audio is mono")
        self._encoder = codec.stream_encoder(bandwidth_kbps)
        self._decoder = codec.stream_decoder(bandwidth_kbps)
        if self._encoder.codebooks > MAX_CODEBOOKS:
            raise ConfigError(
                f"bandwidth {bandwidth_kbps:g} kbps takes {self._encoder.codebooks} codebooks; "
                f"a packet carries {MAX_CODEBOOKS}, choose a lower bandwidth"
            )
        self.rate_hz = config.sampling_rate
        self.hop = config.hop_length
        self.encode_time = Timings()
        self.decode_time = Timings()
        self.packet_bytes = 0
        self._bits = config.codebook_nbits
        self._decode = decode
        self._wav: AudioRecording | None = None
        self._codes: CodesRecording | None = None

    @property
    def codebooks(self) -> int:
        """Codebooks per frame."""
        return self._encoder.codebooks

    @property
    def samples_in(self) -> int:
        """Samples that were pushed."""
        return self._encoder.samples_in

    @property
    def frames(self) -> int:
        """Frames that were encoded."""
        return self._encoder.frames_out

    @property
    def waiting(self) -> int:
        """Samples that wait for their frame to be complete."""
        return self.samples_in - self.frames * self.hop

    @property
    def kbps(self) -> float:
        """The packets' average bitrate, headers of the payload included."""
        seconds = self.frames * self.hop / self.rate_hz
        return 8e-3 * self.packet_bytes / seconds if seconds else 0.0

    def record(
        self, *, wav: AudioRecording | None = None, codes: CodesRecording | None = None
    ) -> None:
        """From now on write what is decoded and what is encoded; ``finish`` ends the recordings."""
        self._wav, self._codes = wav, codes

    def push(self, audio: Audio) -> Audio:
        """Audio of any length -> the audio of the frames that it completes."""
        began = time.perf_counter()
        codes = self._encoder.push(audio)
        if len(codes):
            self.encode_time.add(time.perf_counter() - began, len(codes))
        return self._listen(codes)

    def finish(self) -> Audio:
        """The audio of the last, incomplete frame; completes and closes the recordings."""
        given = self.frames * self.hop
        rest = self._listen(self._encoder.flush(), most=self.samples_in - given)
        self._close_recordings(self.samples_in)
        return rest

    def abandon(self) -> None:
        """Close the recordings with what they hold."""
        self._close_recordings(None)

    def _listen(self, codes: Codes, most: int | None = None) -> Audio:
        """What the far side makes of ``codes``, sent frame by frame."""
        if self._codes is not None and len(codes):
            self._codes.write(codes)
        payloads = [encode_packet(Packet(frame[None]), bits=self._bits) for frame in codes]
        self.packet_bytes += sum(map(len, payloads))
        if not (self._decode and payloads):
            return np.zeros(0, np.float32)
        began = time.perf_counter()
        heard = [self._decoder.push(parse_packet(data, bits=self._bits).codes) for data in payloads]
        self.decode_time.add(time.perf_counter() - began, len(payloads))
        audio: Audio = np.concatenate(heard)[:most]
        if self._wav is not None:
            self._wav.write(audio)
        return audio

    def _close_recordings(self, samples: int | None) -> None:
        wav, self._wav = self._wav, None
        codes, self._codes = self._codes, None
        try:
            if codes is not None:
                codes.finish(samples)
        finally:
            if wav is not None:
                wav.finish()


@dataclass
class Loopback:
    """The decoded audio, and the times of each frame in milliseconds.

    ``encode_ms`` and ``decode_ms`` include packing and parsing. ``late_ms`` is how long after its
    last sample a frame had been decoded; a frame that takes longer than ``frame_ms`` has missed its
    deadline. ``start_up_ms`` runs from the first sample in to the first one out.
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
        """Frames that were not done when the next one arrived."""
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

    ``paced`` passes each frame only when a microphone would have it; else frames follow one another
    immediately, and a frame's lateness is the time it took. ``on_frame`` is called after each
    frame.
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
