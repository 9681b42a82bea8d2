"""Recordings of codes: files that are valid while they grow, so that nothing recorded is lost.

Like those of audio (``audio/recording.py``) they are written under a temporary name and renamed
when they end, however they end. A killed program leaves a valid file up to the last frame, and so
does a full disk: nothing is written after the first error, and what was written stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from encodec_rt.atomic import GrowingFile, WholeWrites, naming
from encodec_rt.bitstream.coding import CodeCoder
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_writer import LIVE_PAGE_S, ContainerWriter
from encodec_rt.bitstream.ecdc import GrowingEcdc
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.types import Codes


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
        """A recording for ``path``. Raises InputError if it cannot be created there."""
        self.frames = 0
        self._header = header
        self._coder = coder
        self._fields = fields
        self._file = _growing(path, ".encodec", force=force)
        self._writer: ContainerWriter | None = None
        self._failed = False

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]. Raises OSError, which names the file."""
        if self._failed:
            return
        with self._keeping():
            if self._writer is None:
                out = WholeWrites(self._file.raw, str(self._file.target))
                self._writer = ContainerWriter(
                    out, self._header, self._coder, fields=self._fields, page_s=LIVE_PAGE_S
                )
            self._writer.write(codes)
            self.frames += len(codes)

    def finish(self, samples: int | None = None) -> None:
        """End the recording of ``samples``, or of all its frames, and give it its name."""
        try:
            if self._writer is not None and not self._failed:
                end = self.frames * self._header.hop if samples is None else samples
                with self._keeping():
                    self._writer.finish(end)
        finally:
            self._file.finish()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """If the block cannot write, keep the complete pages, and write no more."""
        try:
            yield
        except OSError:
            self._failed = True
            self._file.raw.truncate(0 if self._writer is None else self._writer.bytes_written)
            raise


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
        """A recording for ``path``. Raises InputError if it cannot be created there."""
        self.frames = 0
        self._file = _growing(path, ".ecdc", force=force)
        self._open = partial(GrowingEcdc, config=config, model=model, codebooks=codebooks)
        self._writer: GrowingEcdc | None = None
        self._failed = False

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]. Raises OSError, which names the file."""
        if self._failed:
            return
        with self._keeping():
            if self._writer is None:
                self._writer = self._open(self._file.raw)
            self._writer.write(codes)
            self.frames += len(codes)

    def finish(self, samples: int | None = None) -> None:
        """End the recording of ``samples``, or of all its frames, and give it its name."""
        try:
            if self._writer is not None and not self._failed:
                with self._keeping():
                    self._writer.finish(samples)
        finally:
            self._file.finish()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """If the block cannot write, keep what the header covers, and write no more."""
        size = self._file.raw.seek(0, os.SEEK_END)
        try:
            with naming(self._file.target):
                yield
        except OSError:
            self._failed = True
            self._file.raw.truncate(size)
            raise


def _growing(path: str | Path, suffix: str, *, force: bool) -> GrowingFile:
    """Raises InputError for another suffix, or as ``check_target`` does."""
    if Path(path).suffix.lower() != suffix:
        raise InputError(f"{path}: the name of this recording must end in {suffix}")
    return GrowingFile(path, force=force)
