"""Any audio as blocks of float32 at one rate, by name and through pipes alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from encodec_rt.arrays import LOUDEST
from encodec_rt.audio.damage import Damage
from encodec_rt.audio.decoders import (
    Decoded,
    Pieces,
    open_raw,
    open_sndfile,
    open_wav,
    wants_libsndfile,
)
from encodec_rt.audio.ffmpeg import open_ffmpeg
from encodec_rt.audio.pcm import RawFormat
from encodec_rt.audio.source import ByteSource
from encodec_rt.errors import InputError, StateError
from encodec_rt.types import Audio

RATES_HZ = (100, 10_000_000)
LOUD = 4.0
"""Peaks beyond four times full scale are not a loud mix but samples in other units."""

_SHORTFALL_S = 0.25


class AudioReader:
    """An audio file, a pipe, or standard input for "-", whose ``blocks`` are read once.

    A seekable file object may be given instead, called ``name``; whoever opened it closes it.
    ``rate_hz`` and ``channels`` are those of its first samples; a stream may change them, and
    ``blocks`` follows. Damage is skipped and reported in ``warnings``, or refused if ``strict``.
    ``raw`` describes samples without a header. ``tags`` has title, artist and the like. Close it,
    or use it in ``with``. Raises InputError for what is not audio.
    """

    rate_hz: int
    channels: int
    description: str
    tags: dict[str, str]

    def __init__(
        self,
        source: str | Path | BinaryIO,
        *,
        raw: RawFormat | None = None,
        strict: bool = False,
        name: str | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._closed = False
        self._peak = 0.0
        self._samples: dict[int, int] = {}
        try:
            self._source = ByteSource(source, name)
            self._stack.callback(self._source.close)
            self.name = self._source.name
            self._damage = Damage(self.name, strict=strict)
            opened, self._pieces = self._open(raw)
            self._announced_s = opened.announced_s
            self.rate_hz, self.channels = opened.rate_hz, opened.channels
            self.description, self.tags = opened.description, opened.tags
            _check_rate(self.name, self.rate_hz)
            if self.channels < 1:
                raise InputError(f"{self.name} has no audio channel")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> AudioReader:
        """Self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the source."""
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._closed = True
        self._stack.close()

    @property
    def duration_s(self) -> float | None:
        """Seconds according to the header, for a progress bar: they may be wrong."""
        return self._announced_s

    @property
    def seconds(self) -> float:
        """The length of the audio read so far."""
        return sum(samples / rate_hz for rate_hz, samples in self._samples.items())

    @property
    def damaged(self) -> bool:
        """Whether anything that was read so far is missing or wrong."""
        return self._damage.found

    @property
    def warnings(self) -> list[str]:
        """What was wrong with what was read so far, each in one sentence."""
        said = self._damage.warnings()
        if self._peak > LOUD:
            said.append(
                f"{self.name} has samples up to {self._peak:.3g} times full scale; "
                "float audio is expected within -1 and 1"
            )
        return said

    def blocks(self, rate_hz: int, channels: int) -> Iterator[Audio]:
        """The audio as float32 [channels, n], resampled to ``rate_hz``, n varying.

        Several channels become one by their mean, one becomes two by copying; of more than two,
        the third and later ones are mixed into both sides, so that nothing is lost or clipped.
        Raises InputError for samples that are not finite, StateError once the reader is closed.
        """
        for own_rate_hz, run in itertools.groupby(self._checked(), key=lambda piece: piece[0]):
            _check_rate(self.name, own_rate_hz)
            mixed = (mix(block, channels) for _, block in run)
            if own_rate_hz == rate_hz:
                yield from mixed
            else:
                yield from _resampled(mixed, own_rate_hz, rate_hz, channels)
        self._compare_length()

    def _checked(self) -> Pieces:
        while (piece := self._next()) is not None:
            rate_hz, block = piece
            peak = float(np.abs(block).max(initial=0.0))
            if not peak <= LOUDEST:
                at = int(np.argmin((np.abs(block) <= LOUDEST).all(axis=0)))
                raise InputError(
                    f"{self.name} has a sample at {self.seconds + at / rate_hz:.2f} s that is NaN, "
                    f"infinite or beyond {LOUDEST:g}"
                )
            self._peak = max(self._peak, peak)
            self._samples[rate_hz] = self._samples.get(rate_hz, 0) + block.shape[1]
            self._damage.position_s = self.seconds
            yield rate_hz, block

    def _next(self) -> tuple[int, Audio] | None:
        # FFmpeg would otherwise read freed memory.
        if self._closed:
            raise StateError(f"{self.name} was closed before its audio was read; open it again")
        return next(self._pieces, None)

    def _compare_length(self) -> None:
        """Report if a file ends early; audio beyond the announced length is simply audio."""
        missing_s = (self._announced_s or 0.0) - self.seconds - self._damage.lost_s
        if missing_s > _SHORTFALL_S and not self._damage.remarks:
            self._damage.remark(
                f"ends after {self.seconds:.2f} s; its header announces {self._announced_s:.2f} s"
            )

    def _open(self, raw: RawFormat | None) -> tuple[Decoded, Pieces]:
        if raw is not None:
            return self._started(open_raw(self._source, raw))
        if not self._source.peek(1):
            raise InputError(f"{self.name} is empty; give an audio file")
        if opened := open_wav(self._source, self._damage):
            return self._started(opened)
        self._source.rewind()
        has_av = find_spec("av") is not None
        if has_av and not wants_libsndfile(self._source):
            with ExitStack() as stack:
                opened = open_ffmpeg(self._source, self._damage, stack)
                first = next(opened.pieces, None) if opened else None
                if opened and (first or (opened.rate_hz and not self._damage.found)):
                    self._stack.push(stack.pop_all())
                    return self._started(opened, first)
            self._source.rewind()
        if opened := open_sndfile(self._source, self._damage, self._stack):
            return self._started(opened)
        hint = (
            "" if has_av else "; 'pip install encodec-rt[files]' adds the kinds that FFmpeg reads"
        )
        raise InputError(f"{self.name} is not audio of a known format{hint}")

    def _started(
        self, opened: Decoded, first: tuple[int, Audio] | None = None
    ) -> tuple[Decoded, Pieces]:
        """Rate and channels of the first samples are more reliable than the header's."""
        first = first or next(opened.pieces, None)
        self._source.commit()
        if first is None:
            return opened, iter(())
        opened.rate_hz, opened.channels = first[0], len(first[1])
        return opened, itertools.chain([first], opened.pieces)


def mix(block: Audio, channels: int) -> Audio:
    """``block`` [C, n] as [channels, n], for one or two ``channels``; see AudioReader.blocks."""
    given = len(block)
    if given == channels:
        return block
    if channels == 1:
        return np.asarray(block.mean(axis=0, keepdims=True), dtype=np.float32)
    if given == 1:
        return np.repeat(block, 2, axis=0)
    rest = block[2:].mean(axis=0, keepdims=True)
    return np.asarray(0.5 * (block[:2] + rest), dtype=np.float32)


def _resampled(blocks: Iterator[Audio], given_hz: int, wanted_hz: int, n: int) -> Iterator[Audio]:
    import soxr

    resampler = soxr.ResampleStream(given_hz, wanted_hz, n, dtype="float32")
    for block in blocks:
        yield _rows(resampler.resample_chunk(_rows(block)))
    yield _rows(resampler.resample_chunk(np.empty((0, n), np.float32), last=True))


def _rows(block: Audio) -> Audio:
    """[n, C] -> [C, n], or back, laid out as the library wants it."""
    return np.ascontiguousarray(block.T, dtype=np.float32)


def _check_rate(name: str, rate_hz: int) -> None:
    low, high = RATES_HZ
    if not low <= rate_hz <= high:
        raise InputError(f"{name} has a sampling rate of {rate_hz} Hz; {low} to {high} are read")
