"""Recordings: files that are valid while they grow, so that nothing recorded is lost.

A recording is written as NAME.PID.part.SUFFIX and gets its own name when it ends, however it ends.
A program that was killed leaves the part behind, which is a whole file up to the last frame.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encodec_rt.atomic import check_target, is_stream, part_name, publish
from encodec_rt.bitstream.coding import CodeCoder
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_writer import LIVE_PAGE_S, ContainerWriter
from encodec_rt.bitstream.ecdc import GrowingEcdc
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.pcm import to_int16
from encodec_rt.types import Codes

MAX_WAV_BYTES = 2**32 - 4096


class _GrowingFile:
    """An unbuffered file under a temporary name, which exists from the first write on."""

    def __init__(self, path: str | Path, suffix: str, *, force: bool) -> None:
        """Raises InputError for another suffix, or as ``check_target`` does."""
        if Path(path).suffix.lower() != suffix:
            raise InputError(f"{path}: such a recording is named {suffix}")
        if is_stream(path):
            raise InputError(f"{path}: a recording needs a file, whose header grows with it")
        self.target = check_target(path, force=force)
        self.part = part_name(self.target.with_suffix(""), f".part{suffix}", hidden=False)
        self._named, self._force = path, force
        self._raw: FileIO | None = None

    @property
    def raw(self) -> FileIO:
        """The file itself."""
        if self._raw is None:
            self._raw = self.part.open("xb", buffering=0)
        return self._raw

    def finish(self) -> None:
        """Give the file its own name.

        Raises InputError if something else has got it meanwhile; the part stays then.
        """
        if self._raw is not None:
            self._raw.close()
            publish(self.part, self.target, force=self._force, named=self._named)


class WavRecording:
    """Audio, mono with 16 bits, in a WAV file."""

    def __init__(self, path: str | Path, rate_hz: int, *, force: bool = False) -> None:
        """A recording to be at ``path``. Raises InputError if it may not be there."""
        self.samples = 0
        self._rate_hz = rate_hz
        self._file = _GrowingFile(path, ".wav", force=force)
        self._wave: wave.Wave_write | None = None

    def write(self, audio: NDArray[np.float32]) -> None:
        """Append ``audio`` float32 [n]; raises InputError when a WAV file can hold no more."""
        if 2 * (self.samples + len(audio)) > MAX_WAV_BYTES:
            raise InputError(
                f"{self._file.target}: a WAV file ends at 4 GiB; --save has no such end"
            )
        if self._wave is None:
            self._wave = wave.Wave_write(self._file.raw)
            self._wave.setparams((1, 2, self._rate_hz, 0, "NONE", ""))
            # This call also brings the lengths in the header up to date.
        self._wave.writeframes(to_int16(audio).astype("<i2").tobytes())
        self.samples += len(audio)

    def finish(self) -> None:
        """End the recording and give it its name; nothing was made if nothing was written."""
        if self._wave is not None:
            self._wave.close()
        self._file.finish()


class ContainerRecording:
    """Codes in an ``.encodec`` stream, whose pages are written every second."""

    def __init__(
        self,
        path: str | Path,
        header: StreamHeader,
        coder: CodeCoder,
        *,
        fields: Sequence[tuple[str, str]] = (),
        force: bool = False,
    ) -> None:
        """A recording to be at ``path``. Raises InputError if it may not be there."""
        self.frames = 0
        self._header = header
        self._coder = coder
        self._fields = fields
        self._file = _GrowingFile(path, ".encodec", force=force)
        self._writer: ContainerWriter | None = None

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]."""
        if self._writer is None:
            self._writer = ContainerWriter(
                self._file.raw, self._header, self._coder, fields=self._fields, page_s=LIVE_PAGE_S
            )
        self._writer.write(codes)
        self.frames += len(codes)

    def finish(self, samples: int | None = None) -> None:
        """End the recording of ``samples``, or of all its frames, and give it its name."""
        if self._writer is not None:
            self._writer.finish(self.frames * self._header.hop if samples is None else samples)
        self._file.finish()


class EcdcRecording:
    """Codes in an ``.ecdc`` file, whose header is brought up to date with every frame."""

    def __init__(
        self,
        path: str | Path,
        config: EncodecConfig,
        model: str,
        codebooks: int,
        *,
        force: bool = False,
    ) -> None:
        """A recording to be at ``path``. Raises InputError if it may not be there."""
        self.frames = 0
        self._file = _GrowingFile(path, ".ecdc", force=force)
        self._open = partial(GrowingEcdc, config=config, model=model, codebooks=codebooks)
        self._writer: GrowingEcdc | None = None

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]."""
        if self._writer is None:
            self._writer = self._open(self._file.raw)
        self._writer.write(codes)
        self.frames += len(codes)

    def finish(self, samples: int | None = None) -> None:
        """End the recording of ``samples``, or of all its frames, and give it its name."""
        if self._writer is not None:
            self._writer.finish(samples)
        self._file.finish()
