"""Codes to audio: many clips at once in the slots of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from encodec_rt.corpus.work_queue import WorkQueue, table_size
from encodec_rt.errors import InputError
from encodec_rt.streaming.clip_batch import ClipPart, DecodingBatch
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine_work import ABSENT
from encodec_rt.types import Audio, Codes


class ClipOfCodes(Protocol):
    """Codes uint16 [frames, Q] of ``samples`` per channel, and where their audio goes."""

    codes: Codes
    samples: int

    def write(self, pcm: Audio) -> None:
        """Append audio [channels, n]. What it raises is the clip's error."""


C = TypeVar("C", bound=ClipOfCodes)


def decodes_in_slots(codec: Codec) -> bool:
    """Whether this works for the model: it must stream by frames and trim on the right."""
    return not codec.segmented and not codec.packed.decoder_lag


class DecodingQueue(WorkQueue[C, "_DecodingSeat[C]", int]):
    """Decodes clips, of any number of codebooks each."""

    def __init__(
        self, codec: Codec, *, slots: int | None = None, block_frames: int | None = None
    ) -> None:
        """As SlotQueue, for a model that ``decodes_in_slots``."""
        weights = codec.packed
        count, frames = table_size(codec, slots, block_frames)
        batch = DecodingBatch(weights, count)
        super().__init__(batch, count * frames, weights.decoder_start_frames, 1)
        self._batch, self._config = batch, codec.config

    def decode(self, clips: Iterable[C]) -> Iterator[tuple[C, int | Exception]]:
        """Each clip with its samples once all of them are written, or with what was wrong."""
        return self.run(clips)

    def takes(self, codes: Codes) -> bool:
        """Whether a clip is long enough to begin in a slot."""
        return len(codes) >= self.head_frames

    def seat(self, clip: C) -> _DecodingSeat[C]:
        """As WorkQueue."""
        return _DecodingSeat(clip)

    def poll(self, number: int, seat: _DecodingSeat[C], frames: int) -> ClipPart | int:
        """As WorkQueue."""
        if seat.error is not None:
            raise seat.error
        codes, size = seat.clip.codes, self._config.codebook_size
        if not seat.at and codes.max() >= size:
            raise InputError(f"code {codes.max()}; the codes of this model are below {size}")
        inputs = min(frames, len(codes) - seat.at)
        return ClipPart(number, inputs, not seat.at) if inputs else seat.clip.samples

    def step(
        self, seated: Mapping[int, _DecodingSeat[C]], parts: Mapping[int, ClipPart], frames: int
    ) -> None:
        """As WorkQueue."""
        books = max(seated[number].clip.codes.shape[1] for number in parts)
        hop = self._config.hop_length
        codes = np.full((len(parts), frames, books), ABSENT, np.int64)
        for row, (number, part) in zip(codes, parts.items(), strict=True):
            given = seated[number].next(part.inputs)
            row[: part.inputs, : given.shape[1]] = given
        made = self._batch.step(list(parts.values()), torch.from_numpy(codes)).cpu().numpy()
        for pcm, (number, part) in zip(made, parts.items(), strict=True):
            audio = np.atleast_2d(pcm)[:, : part.inputs * hop]
            seated[number].write(audio, hop)


@dataclass
class _DecodingSeat(Generic[C]):
    """A clip in a slot: the frames of it that were decoded, and what went wrong."""

    clip: C
    at: int = 0
    error: Exception | None = None

    def next(self, frames: int) -> Codes:
        """The next frames to decode."""
        taken = self.clip.codes[self.at : self.at + frames]
        self.at += frames
        return taken

    def write(self, pcm: Audio, hop: int) -> None:
        """The last decoded audio, up to the clip's end."""
        beyond = max(0, self.at * hop - self.clip.samples)
        try:
            self.clip.write(pcm[:, : pcm.shape[1] - beyond].copy())
        except Exception as error:  # noqa: BLE001 - it ends this clip and not its neighbours
            self.error = error
