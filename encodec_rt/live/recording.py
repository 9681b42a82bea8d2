"""Recordings of codes: files that are valid while they grow, so that nothing recorded is lost.

As those of audio (``audio/recording.py``) they are written under a temporary name and get their own
when they end, however they end. A program that was killed leaves a whole file up to the last frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from encodec_rt.atomic import GrowingFile
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
        """A recording to be at ``path``. Raises InputError if it may not be there."""
        self.frames = 0
        self._header = header
        self._coder = coder
        self._fields = fields
        self._file = _growing(path, ".encodec", force=force)
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
        self._file = _growing(path, ".ecdc", force=force)
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


def _growing(path: str | Path, suffix: str, *, force: bool) -> GrowingFile:
    """Raises InputError for another suffix, or as ``check_target`` does."""
    if Path(path).suffix.lower() != suffix:
        raise InputError(f"{path}: such a recording is named {suffix}")
    return GrowingFile(path, force=force)
