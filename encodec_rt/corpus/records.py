"""The record of a unit: how many clips it had, what failed, which files it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encodec_rt.corpus.statistics import CodeCounts
from encodec_rt.corpus.units import Unit, as_text
from encodec_rt.errors import CodecError
from encodec_rt.types import Codes


@dataclass(frozen=True)
class Failure:
    """A clip that could not be read, or only in part.

    ``kept`` says whether codes of what could be decoded, ``seconds`` of it, were written.
    """

    id: str
    source: str
    reason: str
    kept: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class UnitRecord:
    """The result of a unit. It depends only on the unit, so that it can be compared.

    ``files`` are the names of what was written, below the folder of data.
    """

    unit: int
    clips: int = 0
    frames: int = 0
    samples: int = 0
    silent_frames: int = 0
    bytes: int = 0
    counts: str = ""
    failures: list[Failure] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @staticmethod
    def from_json(held: Mapping[str, Any]) -> UnitRecord:
        """What ``asdict`` made."""
        failures = [Failure(**one) for one in held["failures"]]
        return UnitRecord(**{**held, "failures": failures})


@dataclass(frozen=True)
class Done:
    """A unit's record, and the wall and CPU seconds that it took."""

    record: UnitRecord
    wall_s: float
    cpu_s: float


class Tally:
    """Counts what a unit gives."""

    def __init__(self, codebooks: int, codebook_size: int) -> None:
        self._failures: list[Failure] = []
        self._counts = CodeCounts(codebooks, codebook_size)
        self._clips = self._frames = self._samples = self._silent = 0

    def add(self, codes: Codes, samples: int, silent_frames: int) -> None:
        """A clip that was written: its codes [frames, Q] and samples per channel."""
        self._clips += 1
        self._frames += len(codes)
        self._samples += samples
        self._silent += silent_frames
        self._counts.add(codes)

    def failed(
        self,
        clip_id: str,
        source: str,
        reason: Exception | str,
        *,
        kept: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """A clip that failed, or was read in part and ``kept``."""
        told = as_text(reason) if isinstance(reason, str) else _told(reason)
        self._failures.append(Failure(clip_id, as_text(source), told, kept, round(seconds, 3)))

    def record(self, unit: Unit, size: int, files: Iterable[Path], folder: Path) -> UnitRecord:
        """All of it. ``size`` is in bytes, and ``files`` lie below ``folder``."""
        return UnitRecord(
            unit.index,
            self._clips,
            self._frames,
            self._samples,
            self._silent,
            size,
            self._counts.to_text(),
            sorted(self._failures, key=lambda one: (one.id, one.source)),
            list(unit.duplicates),
            sorted(str(path.relative_to(folder)) for path in files),
        )


def _told(error: Exception) -> str:
    """Why a clip failed, in one sentence."""
    if isinstance(error, CodecError):
        return as_text(str(error))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {as_text(str(error.filename))}' if error.filename else ''}"
    return as_text(f"{type(error).__name__}: {error}")
