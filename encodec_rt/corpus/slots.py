"""Many clips through the slots of one batch: a work queue without padding.

Each slot holds a clip. All slots step a block of frames at a time; a clip ends where it ends, as
the offline model pads it, and the next one takes its slot. So a clip's codes do not depend on its
neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from encodec_rt.errors import InputError
from encodec_rt.streaming.clip_batch import EncodingBatch, Part
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine_edges import Edges
from encodec_rt.streaming.segments import Segment
from encodec_rt.types import Audio, Codes

SLOTS, BLOCK_FRAMES = 16, 16
"""On a CPU."""
GPU_SLOTS, GPU_BLOCK_FRAMES = 64, 64
SILENCE_DBFS = -60.0

T = TypeVar("T", bound=Iterable[Audio])


@dataclass(frozen=True, eq=False)
class Coded:
    """The codes uint16 [frames, Q] of ``samples`` per channel, and how many frames are silent.

    A model that streams in segments gives the frames of one after the other, and a scale for each
    if it normalises.
    """

    codes: Codes
    samples: int
    silent_frames: int
    scales: tuple[float, ...] = ()


class ClipEncoder(Protocol):
    """Clips to codes, in any order."""

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """Each clip with its codes, or with what was wrong with it, as it is ready."""


def clip_encoder(codec: Codec, bandwidth_kbps: float) -> ClipEncoder:
    """What encodes clips with ``codec``. Raises ConfigError for a bandwidth that it lacks."""
    if codec.segmented:
        return SegmentQueue(codec, bandwidth_kbps)
    return SlotQueue(codec, bandwidth_kbps)


class SlotQueue:
    """Encodes clips of a model that streams by frames."""

    def __init__(
        self,
        codec: Codec,
        bandwidth_kbps: float,
        *,
        slots: int | None = None,
        block_frames: int | None = None,
    ) -> None:
        """Of ``slots`` slots, which take ``block_frames`` frames a step if all of them are taken.

        Raises ConfigError for a bandwidth that the model lacks.
        """
        on_gpu = codec.device.type != "cpu"
        config, weights = codec.config, codec.packed
        books = config.codebooks_for(bandwidth_kbps)
        self._slots = slots or (GPU_SLOTS if on_gpu else SLOTS)
        self._head_frames = weights.encoder_start_frames
        self._frames = block_frames or (GPU_BLOCK_FRAMES if on_gpu else BLOCK_FRAMES)
        self._batch = EncodingBatch(weights, self._slots, books)
        self._edges = Edges(weights, books)
        self._hop = config.hop_length
        self._reflects = config.pad_mode == "reflect"
        self._channels = config.audio_channels

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """As ClipEncoder."""
        waiting = iter(clips)
        seated: dict[int, _Seat[T]] = {}
        free = list(range(self._slots))
        more = True
        while True:
            while free and more:
                clip = next(waiting, None)
                if clip is None:
                    more = False
                else:
                    seated[free.pop()] = _Seat(clip, self._channels, self._hop)
            frames = self._frames_for(len(seated))
            parts: dict[int, Part] = {}
            ended: dict[int, Coded | Exception] = {}
            for number, seat in seated.items():
                found = self._look(number, seat, frames)
                if isinstance(found, Part):
                    parts[number] = found
                else:
                    ended[number] = found
            for number, outcome in ended.items():
                free.append(number)
                yield seated.pop(number).clip, outcome
            if not seated and not more:
                return
            if not ended:
                self._step(seated, parts, frames)

    def _frames_for(self, clips: int) -> int:
        """Fewer clips take more frames at once, so that a step costs about the same."""
        rows = self._batch.rows_for(clips) if clips else self._slots
        return max(self._head_frames, self._frames * self._slots // rows)

    def _look(self, number: int, seat: _Seat[T], frames: int) -> Part | Coded | Exception:
        """What a clip has for a step, or what became of it."""
        try:
            whole = frames * self._hop
            inputs = whole if seat.has(whole) else seat.held
            begins = not seat.codes
            if self._reflects and inputs < (self._head_frames if begins else 1) * self._hop:
                self._finish(None if begins else self._batch.row(number), seat)
            elif inputs:
                return Part(number, inputs, begins)
        except Exception as error:  # noqa: BLE001 - whatever a file's decoder raises is its clip's
            return error
        return seat.coded()

    def _finish(self, row: torch.Tensor | None, seat: _Seat[T]) -> None:
        """The end of a clip of which too little is left to be reflected within a step."""
        if seat.held:
            rest = torch.from_numpy(seat.take(seat.held))
            codes = self._edges.finish_encoder(row, rest[0] if len(rest) == 1 else rest)
            seat.codes.append(codes.cpu().numpy().astype(np.uint16))

    def _step(self, seated: Mapping[int, _Seat[T]], parts: Mapping[int, Part], frames: int) -> None:
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


class SilenceMeter:
    """Counts the frames of ``hop`` samples below SILENCE_DBFS; the last may be shorter."""

    def __init__(self, hop: int) -> None:
        self._hop = hop
        self._rest: Audio | None = None
        self._silent = 0

    def add(self, audio: Audio) -> None:
        """Append ``audio`` [channels, n]."""
        if self._rest is not None and self._rest.shape[1]:
            audio = np.concatenate([self._rest, audio], axis=1)
        frames = audio.shape[1] // self._hop
        whole = audio[:, : frames * self._hop].reshape(len(audio), frames, self._hop)
        self._silent += int((np.square(whole).mean(axis=(0, 2)) < _SILENT_POWER).sum())
        self._rest = audio[:, frames * self._hop :]

    @property
    def frames(self) -> int:
        """Silent frames so far, a shorter last one included."""
        rest = self._rest
        if rest is None or not rest.shape[1]:
            return self._silent
        return self._silent + int(np.square(rest).mean() < _SILENT_POWER)


_SILENT_POWER = 10 ** (SILENCE_DBFS / 10)


class _Seat(Generic[T]):
    """A clip in a slot: what of it was read and waits, and its codes so far."""

    def __init__(self, clip: T, channels: int, hop: int) -> None:
        self.clip = clip
        self.codes: list[Codes] = []
        self.held = 0
        self._channels = channels
        self._blocks = iter(clip)
        self._silence = SilenceMeter(hop)
        self._waiting: deque[Audio] = deque()
        self._ended = False
        self._samples = 0

    def has(self, samples: int) -> bool:
        """Whether so many samples wait, once as much was read as it takes. Raises what it does."""
        while self.held < samples and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            elif block.shape[1]:
                if not np.isfinite(block).all():
                    raise InputError("the audio holds NaN or infinite samples")
                self._silence.add(block)
                self._waiting.append(block)
                self.held += block.shape[1]
        return self.held >= samples

    def take(self, samples: int) -> Audio:
        """The next samples [channels, samples], which wait."""
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

    def coded(self) -> Coded | InputError:
        """The clip's codes, or that there are none."""
        if not self.codes:
            return _nothing()
        return Coded(np.concatenate(self.codes), self._samples, self._silence.frames)


def _nothing() -> InputError:
    return InputError("there are no samples in it")
