"""The tables of packed audio: its clips, their positions and what was measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError
from encodec_rt.training.sources import Kind

Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True)
class Clip:
    """One usable file in its source's packed PCM.

    ``start`` is its first sample there, per channel; ``spans`` are (start, length) of its active
    audio, in samples from the clip's own start.
    """

    path: str
    start: int
    samples: int
    speaker: str
    split: Split
    level_dbfs: float
    bandwidth_hz: float
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class IndexedSource:
    """One source in the index: its usable clips, and (path, reason) of each file left out."""

    name: str
    kind: Kind
    licence: str
    authors: str
    version: str
    clips: tuple[Clip, ...]
    left_out: tuple[tuple[str, str], ...]
    sampling_rate: int = 24_000
    channels: int = 1

    def hours(self, split: Split, *, active: bool = False) -> float:
        """Hours of audio in ``split``; with ``active``, of its active spans only."""
        samples = sum(
            sum(length for _, length in clip.spans) if active else clip.samples
            for clip in self.clips
            if clip.split == split
        )
        return samples / self.sampling_rate / 3600


def name_hash(name: str) -> str:
    """A hash of a clip's name, for choices that look random but stay the same."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def load_index(folder: Path) -> tuple[IndexedSource, ...]:
    """All sources packed in ``folder``, sorted by name; raises InputError if there are none."""
    tables = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not tables:
        raise InputError(
            f"{folder} holds no packed audio; run `encodec-rt data index` with that folder first"
        )
    return tuple(read_table(table) for table in tables)


def write_table(source: IndexedSource, folder: Path) -> None:
    """Write the table of a packed source as ``folder/<name>.json``."""
    with replacing(folder / f"{source.name}.json", force=True) as partial:
        partial.write_text(json.dumps(asdict(source)), encoding="utf-8")


def read_table(path: Path) -> IndexedSource:
    """Read a table that ``write_table`` wrote; raises InputError for any other file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return IndexedSource(
            name=table["name"],
            kind=table["kind"],
            licence=table["licence"],
            authors=table["authors"],
            version=table["version"],
            clips=tuple(
                Clip(**{**clip, "spans": tuple((s, n) for s, n in clip["spans"])})
                for clip in table["clips"]
            ),
            left_out=tuple((name, reason) for name, reason in table["left_out"]),
            sampling_rate=int(table["sampling_rate"]),
            channels=int(table.get("channels", 1)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a table of packed audio: {error}") from error
