"""Streams of models that need a whole segment before they can encode any of it.

The 48 kHz model is one: its norms and its loudness are over a second of audio, so its algorithmic
delay is one second. A model without chunks has a single segment, the whole clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.errors import InputError, StateError
from encodec_rt.model.encodec import EncodecModel, loudness, triangle
from encodec_rt.streaming.arrays import as_audio, as_codes, to_audio
from encodec_rt.types import Audio, Codes


@dataclass(frozen=True)
class Segment:
    """One encoded segment: codes uint16 [frames, Q], its loudness, and its samples."""

    codes: Codes
    scale: float | None
    samples: int


def _no_audio(model: EncodecModel) -> Tensor:
    return torch.zeros(0, model.config.audio_channels, dtype=torch.float32, device="cpu")


class SegmentEncoder:
    """Audio pushed in pieces of any size -> segments, each encoded as by the offline model."""

    def __init__(self, model: EncodecModel, bandwidth_kbps: float) -> None:
        """Use Codec.segment_encoder. Raises ConfigError for a bandwidth the model lacks."""
        self._model = model
        self._bandwidth = bandwidth_kbps
        self.codebooks = model.config.codebooks_for(bandwidth_kbps)
        self._waiting = torch.zeros(
            0, model.config.audio_channels, dtype=torch.float32, device="cpu"
        )
        self.samples_in = 0
        self.closed = False

    def push(self, pcm: ArrayLike | Tensor) -> list[Segment]:
        """Audio float32 [n] or [channels, n], n >= 0 -> the segments that it completes.

        Raises InputError, and StateError after ``flush``; the stream is then as it was.
        """
        if self.closed:
            raise StateError("this stream was flushed; open a new one")
        config = self._model.config
        audio = as_audio(pcm, config.audio_channels)
        waiting = torch.cat([self._waiting, audio])
        segments = []
        if config.chunk_length is not None and config.chunk_stride is not None:
            while len(waiting) >= config.chunk_length:
                segments.append(self._encode(waiting[: config.chunk_length]))
                waiting = waiting[config.chunk_stride :]
        self._waiting = waiting.clone()
        self.samples_in += len(audio)
        return segments

    def flush(self) -> list[Segment]:
        """The remaining segments, which are shorter than the others; closes the stream."""
        if self.closed:
            raise StateError("this stream was flushed; open a new one")
        self.closed = True
        stride = self._model.config.chunk_stride or max(1, len(self._waiting))
        rest = range(0, len(self._waiting), stride)
        return [self._encode(self._waiting[start:]) for start in rest]

    @torch.inference_mode()
    def _encode(self, samples: Tensor) -> Segment:
        model = self._model
        audio = samples.t()[None].to(next(model.parameters()).device)
        scale = None
        if model.config.normalize:
            loud = loudness(audio)
            audio, scale = audio / loud, float(loud)
        codes = model.quantizer.encode(model.encoder(audio), self._bandwidth)[:, 0]
        return Segment(codes.t().cpu().numpy().astype(np.uint16), scale, len(samples))


class SegmentDecoder:
    """Segments -> audio, cross-faded by overlap-add as in the offline model."""

    def __init__(self, model: EncodecModel) -> None:
        """Use Codec.segment_decoder."""
        self._model = model
        self._summed = torch.zeros(
            0, model.config.audio_channels, dtype=torch.float32, device="cpu"
        )
        self._weights = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._triangle: Tensor | None = None
        self._decoded = 0
        self.samples_out = 0
        self.closed = False

    @torch.inference_mode()
    def push(self, segment: Segment) -> Audio:
        """One segment -> the audio float32 [n] or [channels, n] that no later one will change."""
        if self.closed:
            raise StateError("this stream was flushed; open a new one")
        model, config = self._model, self._model.config
        if config.chunk_length is None and self._decoded:
            raise StateError("a model without chunks has one segment per stream")
        if config.normalize != (segment.scale is not None):
            raise InputError(f"scale={segment.scale} for a model with normalize={config.normalize}")
        codes = as_codes(segment.codes, config.codebook_size, config.num_quantizers)
        if not len(codes):
            raise InputError("a segment of no frames")
        device = next(model.parameters()).device
        audio = model.decoder(model.quantizer.decode(codes.t()[:, None].to(device)))[0].t().cpu()
        if segment.scale is not None:
            audio = audio * segment.scale
        if config.chunk_length is None:
            self._decoded += 1
            return self._emit(audio)
        self._overlap_add(audio)
        self._decoded += 1
        assert config.chunk_stride is not None
        ready, self._summed = self._split(self._summed, config.chunk_stride)
        weights, self._weights = self._split(self._weights, config.chunk_stride)
        return self._emit(ready / weights[:, None])

    def flush(self, samples: int | None = None) -> Audio:
        """The audio still held, cut so that the whole stream has ``samples``; closes the stream."""
        if self.closed:
            raise StateError("this stream was flushed; open a new one")
        self.closed = True
        rest = self._summed / self._weights[:, None]
        if samples is not None:
            rest = rest[: max(0, samples - self.samples_out)]
        return self._emit(rest)

    def _overlap_add(self, audio: Tensor) -> None:
        # As upstream, the triangle spans the first segment, also for shorter later ones.
        if self._triangle is None:
            self._triangle = triangle(len(audio), like=audio)
        weight = self._triangle[: len(audio)]
        missing = max(0, len(audio) - len(self._summed))
        self._summed = torch.nn.functional.pad(self._summed, (0, 0, 0, missing))
        self._weights = torch.nn.functional.pad(self._weights, (0, missing))
        self._summed[: len(audio)] += weight[:, None] * audio
        self._weights[: len(audio)] += weight

    @staticmethod
    def _split(held: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        return held[:stride], held[stride:].clone()

    def _emit(self, audio: Tensor) -> Audio:
        self.samples_out += len(audio)
        return to_audio(audio)
