"""Streams of models that need a whole segment before they can encode any of it.

The 48 kHz model is one: its norms and its loudness are over a second of audio, so its algorithmic
delay is one second. A model without chunks has a single segment, the whole clip.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.model.encodec import EncodecModel, loudness, triangle
from encodec_rt.streaming.arrays import as_audio, as_codes, to_audio
from encodec_rt.streaming.stream_base import OpenOrClosed, whole
from encodec_rt.types import Audio, Codes

S = TypeVar("S", bound="SegmentStream")


@dataclass(frozen=True)
class Segment:
    """One encoded segment: codes uint16 [frames, Q], its loudness, and its samples."""

    codes: Codes
    scale: float | None
    samples: int


class SegmentStream(OpenOrClosed):
    """What both directions share: the model, and that no tensor of theirs changes in place."""

    def __init__(self, model: EncodecModel) -> None:
        """Use Codec.segment_encoder or Codec.segment_decoder. Raises ConfigError."""
        if not isinstance(model, EncodecModel):
            raise ConfigError(
                f"a model of type {type(model).__name__}; open a stream with "
                "Codec.segment_encoder or Codec.segment_decoder"
            )
        self._model = model
        self.device = model.device
        self.closed = False

    def __deepcopy__(self: S, memo: dict[int, Any]) -> S:
        """An independent stream, over the same model."""
        return copy.copy(self)

    def _no_audio(self) -> Tensor:
        channels = self._model.config.audio_channels
        return torch.zeros(0, channels, dtype=torch.float32, device="cpu")

    def _save(self) -> dict[str, Any]:
        return dict(vars(self))

    def _load(self, held: dict[str, Any]) -> None:
        vars(self).update(held)


class SegmentEncoder(SegmentStream):
    """Audio pushed in pieces of any size -> segments, each encoded as by the offline model."""

    def __init__(self, model: EncodecModel, bandwidth_kbps: float) -> None:
        """Use Codec.segment_encoder. Raises ConfigError for a bandwidth the model lacks."""
        super().__init__(model)
        self._bandwidth = bandwidth_kbps
        self.codebooks = model.config.codebooks_for(bandwidth_kbps)
        self._waiting = self._no_audio()
        self.samples_in = 0

    @whole
    def push(self, pcm: ArrayLike | Tensor) -> list[Segment]:
        """Audio float32 [n] or [channels, n], n >= 0 -> the segments that it completes.

        Raises InputError, and StateError after ``flush``; the stream is then as it was.
        """
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

    @whole
    def flush(self) -> list[Segment]:
        """The remaining segments, which are shorter than the others; closes the stream."""
        self.closed = True
        stride = self._model.config.chunk_stride or max(1, len(self._waiting))
        rest = range(0, len(self._waiting), stride)
        return [self._encode(self._waiting[start:]) for start in rest]

    def _about(self) -> str:
        return f", {self.samples_in} samples in"

    def _encode(self, samples: Tensor) -> Segment:
        model = self._model
        audio = samples.t()[None].to(self.device)
        scale = None
        if model.config.normalize:
            loud = loudness(audio)
            audio, scale = audio / loud, float(loud)
        codes = model.quantizer.encode(model.encoder(audio), self._bandwidth)[:, 0]
        return Segment(codes.t().cpu().numpy().astype(np.uint16), scale, len(samples))


class SegmentDecoder(SegmentStream):
    """Segments -> audio, cross-faded by overlap-add as in the offline model."""

    def __init__(self, model: EncodecModel) -> None:
        """Use Codec.segment_decoder."""
        super().__init__(model)
        self._summed = self._no_audio()
        self._weights = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._triangle: Tensor | None = None
        self._decoded = 0
        self.samples_out = 0

    @whole
    def push(self, segment: Segment) -> Audio:
        """One segment -> the audio float32 [n] or [channels, n] that no later one will change.

        Raises InputError, and StateError after ``flush``; the stream is then as it was.
        """
        stride = self._model.config.chunk_stride
        audio = self._decode(segment)
        self._decoded += 1
        if stride is None:
            return self._emit(audio)
        self._overlap_add(audio)
        ready, self._summed = self._summed[:stride], self._summed[stride:].clone()
        weights, self._weights = self._weights[:stride], self._weights[stride:].clone()
        return self._emit(ready / weights[:, None])

    @whole
    def flush(self, samples: int | None = None) -> Audio:
        """The audio still held, cut so that the whole stream has ``samples``; closes the stream."""
        self.closed = True
        rest = self._summed / self._weights[:, None]
        if samples is not None:
            rest = rest[: max(0, samples - self.samples_out)]
        return self._emit(rest)

    def _about(self) -> str:
        return f", {self._decoded} segments in, {self.samples_out} samples out"

    def _decode(self, segment: Segment) -> Tensor:
        """The audio [n, channels] of one segment, on the host."""
        model, config = self._model, self._model.config
        if not isinstance(segment, Segment):
            raise InputError(f"a {type(segment).__name__}; pass a Segment of the encoder")
        if not isinstance(segment.scale, (float, int, np.number, type(None))):
            raise InputError(f"scale={segment.scale!r}; pass the number that the encoder gave")
        if config.chunk_length is None and self._decoded:
            raise StateError("a model without chunks has one segment per stream")
        if config.normalize != (segment.scale is not None):
            raise InputError(f"scale={segment.scale} for a model with normalize={config.normalize}")
        codes = as_codes(segment.codes, config.codebook_size, config.num_quantizers)
        if not len(codes):
            raise InputError("a segment of no frames")
        latents = model.quantizer.decode(codes.t()[:, None].to(self.device))
        audio: Tensor = model.decoder(latents)[0].t().cpu()
        return audio if segment.scale is None else audio * segment.scale

    def _overlap_add(self, audio: Tensor) -> None:
        # As upstream, the triangle spans the first segment, also for shorter later ones.
        if self._triangle is None:
            self._triangle = triangle(len(audio), like=audio)
        weight = self._triangle[: len(audio)]
        self._summed = _sum(self._summed, weight[:, None] * audio)
        self._weights = _sum(self._weights, weight)

    def _emit(self, audio: Tensor) -> Audio:
        self.samples_out += len(audio)
        return to_audio(audio)


def _sum(held: Tensor, more: Tensor) -> Tensor:
    """held [n, ...] + more [m, ...], both from the same sample on -> a new [max(n, m), ...]."""
    total = held.new_zeros(max(len(held), len(more)), *held.shape[1:])
    total[: len(held)] = held
    total[: len(more)] += more
    return total
