"""Clips to codes: many at once in the slots of a batch, or segment by segment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
import torch

from encodec_rt.arrays import UNUSABLE, all_usable
from encodec_rt.corpus.statistics import SilenceMeter
from encodec_rt.corpus.work_queue import WorkQueue, table_size
from encodec_rt.errors import InputError
from encodec_rt.streaming.clip_batch import ClipPart, EncodingBatch
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine_edges import Edges
from encodec_rt.streaming.segments import Segment
from encodec_rt.types import Audio, Codes

T = TypeVar("T", bound=Iterable[Audio])


@dataclass(frozen=True, eq=False)
class Coded:
    """The codes uint16 [frames, Q] of ``samples`` per channel, and how many frames are silent.

    For a model that streams in segments, the frames of all segments in order, and a scale for each
    if it normalises.
    """

    codes: Codes
    samples: int
    silent_frames: int
    scales: tuple[float, ...] = ()


class ClipEncoder(Protocol):
    """Clips to codes, in any order."""

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """Each clip with its codes or its error, as it becomes ready."""


def clip_encoder(codec: Codec, bandwidth_kbps: float) -> ClipEncoder:
    """An encoder of clips with ``codec``. Raises ConfigError for a bandwidth that it lacks."""
    if codec.segmented:
        return SegmentQueue(codec, bandwidth_kbps)
    return SlotQueue(codec, bandwidth_kbps)


class SlotQueue(WorkQueue[Iterable[Audio], "_EncodingSeat", Coded]):
    """Encodes clips of a model that streams by frames."""

    def __init__(
        self,
        codec: Codec,
        bandwidth_kbps: float,
        *,
        slots: int | None = None,
        block_frames: int | None = None,
    ) -> None:
        """With ``slots`` slots, which take ``block_frames`` frames a step when all are in use.

        Raises ConfigError for a bandwidth that the model lacks.
        """
        config, weights = codec.config, codec.packed
        books = config.codebooks_for(bandwidth_kbps)
        count, frames = table_size(codec, slots, block_frames)
        batch = EncodingBatch(weights, count, books)
        self._hop = config.hop_length
        super().__init__(batch, count * frames, weights.encoder_start_frames, self._hop)
        self._batch = batch
        self._edges = Edges(weights, books)
        self._reflects = config.pad_mode == "reflect"
        self._channels = config.audio_channels

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """As ClipEncoder."""
        # Each result goes with its clip.
        return cast("Iterator[tuple[T, Coded | Exception]]", self.run(clips))

    def seat(self, clip: Iterable[Audio]) -> _EncodingSeat:
        """As WorkQueue."""
        return _EncodingSeat(clip, self._channels, self._hop)

    def poll(self, number: int, seat: _EncodingSeat, frames: int) -> ClipPart | Coded:
        """As WorkQueue."""
        whole = frames * self._hop
        inputs = whole if seat.has(whole) else seat.held
        begins = not seat.codes
        if self._reflects and inputs < (self.head_frames if begins else 1) * self._hop:
            self._finish(None if begins else self._batch.row(number), seat)
        elif inputs:
            return ClipPart(number, inputs, begins)
        return seat.coded()

    def _finish(self, row: torch.Tensor | None, seat: _EncodingSeat) -> None:
        """The end of a clip that is too short to be reflected within a step."""
        if seat.held:
            rest = torch.from_numpy(seat.take(seat.held))
            codes = self._edges.finish_encoder(row, rest[0] if len(rest) == 1 else rest)
            seat.codes.append(codes.cpu().numpy().astype(np.uint16))

    def step(
        self, seated: Mapping[int, _EncodingSeat], parts: Mapping[int, ClipPart], frames: int
    ) -> None:
        """As WorkQueue."""
        pcm = np.zeros((len(parts), self._channels, frames * self._hop), np.float32)
        for row, (number, part) in zip(pcm, parts.items(), strict=True):
            row[:, : part.inputs] = seated[number].take(part.inputs)
        audio = torch.from_numpy(pcm[:, 0] if self._channels == 1 else pcm)
        codes = self._batch.step(list(parts.values()), audio).cpu().numpy().astype(np.uint16)
        for row, (number, part) in zip(codes, parts.items(), strict=True):
            seated[number].codes.append(row[: -(-part.inputs // self._hop)])


class SegmentQueue:
    """Encodes clips of a model that needs a whole segment at once, one after the other."""

    def __init__(self, codec: Codec, bandwidth_kbps: float) -> None:
        self._codec, self._bandwidth = codec, bandwidth_kbps
        self._books = codec.config.codebooks_for(bandwidth_kbps)

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """As ClipEncoder."""
        for clip in clips:
            try:
                outcome: Coded | Exception = self._encode(clip)
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises is its clip's
                outcome = error
            yield clip, outcome

    def _encode(self, clip: T) -> Coded:
        encoder = self._codec.segment_encoder(self._bandwidth)
        silence = SilenceMeter(self._codec.config.hop_length)
        segments: list[Segment] = []
        for block in clip:
            silence.add(block)
            segments += encoder.push(block)
        segments += encoder.flush()
        if not segments:
            raise _nothing()
        scales = tuple(each.scale for each in segments if each.scale is not None)
        codes = np.concatenate([each.codes for each in segments])
        return Coded(codes, encoder.samples_in, silence.frames, scales)


class _EncodingSeat:
    """A clip in a slot: samples read but not encoded yet, and its codes so far."""

    def __init__(self, clip: Iterable[Audio], channels: int, hop: int) -> None:
        self.codes: list[Codes] = []
        self.held = 0
        self._channels = channels
        self._blocks = iter(clip)
        self._silence = SilenceMeter(hop)
        self._waiting: deque[Audio] = deque()
        self._ended = False
        self._samples = 0

    def has(self, samples: int) -> bool:
        """Read until ``samples`` samples wait; whether they do. Raises what reading raises."""
        while self.held < samples and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            elif block.shape[1]:
                if not all_usable(block):
                    raise InputError(f"the audio holds {UNUSABLE}")
                self._silence.add(block)
                self._waiting.append(block)
                self.held += block.shape[1]
        return self.held >= samples

    def take(self, samples: int) -> Audio:
        """The next waiting samples [channels, samples]."""
        taken = np.empty((self._channels, samples), np.float32)
        filled = 0
        while filled < samples:
            block = self._waiting.popleft()
            some = min(block.shape[1], samples - filled)
            taken[:, filled : filled + some] = block[:, :some]
            if some < block.shape[1]:
                self._waiting.appendleft(block[:, some:])
            filled += some
        self.held -= samples
        self._samples += samples
        return taken

    def coded(self) -> Coded:
        """The clip's codes. Raises InputError if there are none."""
        if not self.codes:
            raise _nothing()
        return Coded(np.concatenate(self.codes), self._samples, self._silence.frames)


def _nothing() -> InputError:
    return InputError("it contains no samples")
