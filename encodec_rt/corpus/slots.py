"""Many clips through the slots of one engine: a work queue without padding.

Each slot holds a clip. All slots step a block of frames at a time; a clip that has less than a
block left is finished by itself, as the offline model pads it, and the next one takes its slot. So
a clip's codes do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.segments import Segment
from encodec_rt.types import Audio, Codes

SLOTS = 8
"""On a CPU. More of them do not gain anything there: the products are large enough."""
GPU_SLOTS = 64
BLOCK_FRAMES = 64
ALONE_FRAMES = 256
"""Frames at once of a clip that has no company."""
FEWEST = 6
"""Of eight slots, as many must have a block for a joint step to cost less than one by one."""
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
        block_frames: int = BLOCK_FRAMES,
    ) -> None:
        on_gpu = codec.device.type != "cpu"
        slots = slots or (GPU_SLOTS if on_gpu else SLOTS)
        self._fewest = 1 if on_gpu else -(-slots * FEWEST // SLOTS)
        self._engine = codec.engine(slots, bandwidth_kbps, start="exact", frames=block_frames)
        self._alone = codec.engine(1, bandwidth_kbps, start="exact", frames=ALONE_FRAMES)
        self._hop = codec.config.hop_length
        self._begins = codec.config.pad_mode != "constant"
        self._head = codec.packed.encoder_start_frames * self._hop
        channels, samples = codec.config.audio_channels, block_frames * self._hop
        shape = (slots, samples) if channels == 1 else (slots, channels, samples)
        self._batch = torch.zeros(shape, dtype=torch.float32)
        self._active = torch.zeros(slots, dtype=torch.bool)

    def encode(self, clips: Iterable[T]) -> Iterator[tuple[T, Coded | Exception]]:
        """As ClipEncoder."""
        waiting = iter(clips)
        seated: dict[int, _Seat[T]] = {}
        free = list(range(self._engine.slots))
        more = True
        while True:
            while free and more:
                clip = next(waiting, None)
                if clip is None:
                    more = False
                else:
                    seated[free.pop()] = _Seat(clip, self._hop)
            done = {number: self._advance(number, seat) for number, seat in seated.items()}
            for number, outcome in done.items():
                if outcome is not None:
                    free.append(number)
                    yield seated.pop(number).clip, outcome
            if free and more:
                continue
            if not seated:
                return
            if len(seated) >= self._fewest:
                self._step(seated)
                continue
            for number, seat in seated.items():
                yield seat.clip, self._run_alone(number, seat)
            free += seated
            seated.clear()

    def _advance(self, number: int, seat: _Seat[T]) -> Coded | Exception | None:
        """Bring a clip to its next whole block: None if it has one, else how it ended."""
        engine = self._engine
        try:
            if not seat.begun:
                if not seat.has(self._head):
                    return seat.finish(engine, number)
                if self._begins:
                    seat.append(engine.begin_encoder(number, seat.tensor(self._head)))
                else:
                    engine.reset([number])
                seat.begun = True
            if seat.has(engine.frames * self._hop):
                return None
            return seat.finish(engine, number)
        except Exception as error:  # noqa: BLE001 - whatever a file's decoder raises is its clip's
            return error

    def _step(self, seated: dict[int, _Seat[T]]) -> None:
        samples = self._engine.frames * self._hop
        self._active.zero_()
        for number, seat in seated.items():
            self._batch[number] = seat.tensor(samples)
            self._active[number] = True
        given = self._engine.encode(self._batch, self._active).numpy().astype(np.uint16)
        codes = given.reshape(len(given), self._engine.frames, -1)
        for number, seat in seated.items():
            seat.codes.append(codes[number])

    def _run_alone(self, number: int, seat: _Seat[T]) -> Coded | Exception:
        """The rest of a clip, in an engine of one slot."""
        alone = self._alone
        alone.load_state(0, self._engine.state_of(number))
        try:
            samples = alone.frames * self._hop
            while seat.has(samples):
                seat.append(alone.encode(seat.tensor(samples)[None])[0])
            return seat.finish(alone, 0)
        except Exception as error:  # noqa: BLE001 - as above
            return error


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

    def __init__(self, clip: T, hop: int) -> None:
        self.clip = clip
        self.begun = False
        self.codes: list[Codes] = []
        self._blocks = iter(clip)
        self._silence = SilenceMeter(hop)
        self._waiting: list[Audio] = []
        self._held = 0
        self._ended = False
        self._samples = 0

    def has(self, samples: int) -> bool:
        """Whether so many samples wait, once as much was read as it takes. Raises what it does."""
        while self._held < samples and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            elif block.shape[1]:
                self._silence.add(block)
                self._waiting.append(block)
                self._held += block.shape[1]
        return self._held >= samples

    def tensor(self, samples: int) -> torch.Tensor:
        """The next ``samples`` [n] or [channels, n], which wait."""
        audio = np.concatenate(self._waiting, axis=1) if self._waiting else None
        if audio is None:
            return torch.zeros(0)
        self._waiting = [audio[:, samples:]] if audio.shape[1] > samples else []
        self._held -= samples
        self._samples += samples
        taken = np.ascontiguousarray(audio[:, :samples], dtype=np.float32)
        return torch.from_numpy(taken[0] if len(taken) == 1 else taken)

    def append(self, codes: torch.Tensor) -> None:
        """Take codes [frames, Q]."""
        self.codes.append(codes.cpu().numpy().astype(np.uint16))

    def finish(self, engine: Engine, slot: int) -> Coded:
        """The clip's end: all that waits."""
        if not self._held and not self.codes:
            raise _nothing()
        if self._held:
            rest = self.tensor(self._held)
            self.append(engine.finish_encoder(slot, rest, begun=bool(self.codes)))
        return Coded(np.concatenate(self.codes), self._samples, self._silence.frames)


def _nothing() -> InputError:
    return InputError("there are no samples in it")
