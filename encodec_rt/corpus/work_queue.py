"""Many clips through the slots of one batch: a work queue without padding.

Each slot holds a clip. All slots step a block of frames at a time; a clip may end anywhere in it,
padded as in the offline model, and the next one takes its slot. So a clip's result does not depend
on its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from encodec_rt.streaming.clip_batch import ClipBatch, ClipPart
from encodec_rt.streaming.codec import Codec

SLOTS, BLOCK_FRAMES = 8, 32
"""On a CPU. Per frame 16 x 16 takes 2 to 8 % longer, 32 x 8 up to 14 %, 4 x 64 up to 4 %, and short
clips waste most of long steps."""
GPU_SLOTS, GPU_BLOCK_FRAMES = 64, 64
"""On a GPU. Not measured."""
MIN_FRAMES = 2
STEP_COSTS_FRAMES = 1
"""The fixed cost of a step, in frames of every slot."""

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")


def table_size(codec: Codec, slots: int | None, block_frames: int | None) -> tuple[int, int]:
    """Slots and frames per step, as given or what suits the device."""
    on_gpu = codec.device.type != "cpu"
    return (
        slots or (GPU_SLOTS if on_gpu else SLOTS),
        block_frames or (GPU_BLOCK_FRAMES if on_gpu else BLOCK_FRAMES),
    )


class WorkQueue(ABC, Generic[T, S, R]):
    """Clips T, held as S while in a slot, become results R, in any order.

    ``head_frames`` is what a clip needs to begin within a step.
    """

    def __init__(self, batch: ClipBatch, frames: int, head_frames: int, unit: int) -> None:
        """Take up to ``frames`` per step; a frame has ``unit`` inputs."""
        self.head_frames = head_frames
        self._clips = batch
        self._frames, self._unit = frames, unit

    @abstractmethod
    def seat(self, clip: T) -> S:
        """The clip at its begin."""

    @abstractmethod
    def poll(self, number: int, seat: S, frames: int) -> ClipPart | R:
        """A clip's input for a step of ``frames``, or its result. May raise anything."""

    @abstractmethod
    def step(self, seated: Mapping[int, S], parts: Mapping[int, ClipPart], frames: int) -> None:
        """Step the clips of ``parts``, by slot."""

    def run(self, clips: Iterable[T]) -> Iterator[tuple[T, R | Exception]]:
        """Each clip with its result or its error, as it becomes ready."""
        waiting = iter(clips)
        seated: dict[int, S] = {}
        given: dict[int, T] = {}
        free = list(range(self._clips.slots))
        more = True
        while True:
            while free and more:
                clip = next(waiting, _END)
                if clip is _END:
                    more = False
                else:
                    number = free.pop()
                    given[number], seated[number] = clip, self.seat(clip)
            most = self._most_frames(len(seated))
            parts: dict[int, ClipPart] = {}
            ended: dict[int, R | Exception] = {}
            for number, seat in seated.items():
                try:
                    found: ClipPart | R | Exception = self.poll(number, seat, most)
                except Exception as error:  # noqa: BLE001 - whatever a file's reader raises is its own
                    found = error
                if isinstance(found, ClipPart):
                    parts[number] = found
                else:
                    ended[number] = found
            for number, outcome in ended.items():
                free.append(number)
                del seated[number]
                yield given.pop(number), outcome
            if not seated and not more:
                return
            if not ended:
                frames = self._frames_for(parts.values(), most)
                some = frames * self._unit
                cut = {
                    at: replace(part, inputs=min(part.inputs, some)) for at, part in parts.items()
                }
                self.step(seated, cut, frames)

    def _most_frames(self, clips: int) -> int:
        """Fewer clips take more frames at once, so that a step costs about the same."""
        rows = self._clips.rows_for(clips) if clips else self._clips.slots
        return max(MIN_FRAMES, self.head_frames, self._frames // rows)

    def _frames_for(self, parts: Iterable[ClipPart], most: int) -> int:
        """All, a half or a quarter of ``most``: what wastes least on short clips."""
        left = [-(-part.inputs // self._unit) for part in parts]
        lowest = max(MIN_FRAMES, self.head_frames)
        choices = [most, *(some for some in (most // 2, most // 4) if some >= lowest)]
        return max(
            choices,
            key=lambda some: sum(min(some, each) for each in left) / (some + STEP_COSTS_FRAMES),
        )


_END: Any = object()
