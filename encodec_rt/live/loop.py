"""The codec as a live session uses it: encoder -> packets -> decoder, timed and recorded."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.packet import (
    MAX_CODEBOOKS,
    Codes,
    Packet,
    encode_packet,
    parse_packet,
)
from encodec_rt.errors import ConfigError
from encodec_rt.live.recording import EcdcRecording, WavRecording
from encodec_rt.sound.meter import Timings
from encodec_rt.streaming.codec import Codec

Audio = NDArray[np.float32]


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
        self._wav: WavRecording | None = None
        self._ecdc: EcdcRecording | None = None

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
        """What the packets have taken, their first byte included, on average."""
        seconds = self.frames * self.hop / self.rate_hz
        return 8e-3 * self.packet_bytes / seconds if seconds else 0.0

    def record(self, *, wav: WavRecording | None = None, ecdc: EcdcRecording | None = None) -> None:
        """From now on write what is decoded and what is encoded; ``finish`` ends the recordings."""
        self._wav, self._ecdc = wav, ecdc

    def push(self, audio: Audio) -> Audio:
        """Audio of any length -> the audio of the frames that it completes."""
        began = time.perf_counter()
        codes = self._encoder.push(audio)
        if len(codes):
            self.encode_time.add(time.perf_counter() - began, len(codes))
        return self._listen(codes)

    def finish(self) -> Audio:
        """The audio of the last, incomplete frame; the recordings are then whole and closed."""
        given = self.frames * self.hop
        rest = self._listen(self._encoder.flush(), most=self.samples_in - given)
        self._close_recordings(self.samples_in)
        return rest

    def abandon(self) -> None:
        """Close the recordings with what they hold."""
        self._close_recordings(None)

    def _listen(self, codes: Codes, most: int | None = None) -> Audio:
        """What the far side makes of ``codes``, sent frame by frame."""
        if self._ecdc is not None and len(codes):
            self._ecdc.write(codes)
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
        ecdc, self._ecdc = self._ecdc, None
        try:
            if ecdc is not None:
                ecdc.finish(samples)
        finally:
            if wav is not None:
                wav.finish()
