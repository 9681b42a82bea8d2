"""The tables of packed audio: which clips there are, where they lie, and what they hold."""

from __future__ import annotations

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
    """One usable file in its source's packed PCM; ``spans`` are (start, length) of active audio."""

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
    """What the index holds of one source: its usable clips, and what was left out and why."""

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
        """Hours of that split; ``active`` counts only the spans above the level floor."""
        samples = sum(
            sum(length for _, length in clip.spans) if active else clip.samples
            for clip in self.clips
            if clip.split == split
        )
        return samples / self.sampling_rate / 3600


def load_index(folder: Path) -> tuple[IndexedSource, ...]:
    """Every source packed in ``folder``, by name; raises InputError where there is none."""
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
    """What ``write_table`` wrote; raises InputError for anything else."""
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
