"""Stored codes for training in PyTorch: random crops, and the first codebooks of a bandwidth."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from encodec_rt.arrays import is_count
from encodec_rt.corpus.rows import OWN_COLUMNS, CodesInfo, StoredClip
from encodec_rt.corpus.stored import code_files, info_of, read_rows, row_from_parquet
from encodec_rt.corpus.tables import open_parquet
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.streaming.engine_work import ABSENT
from encodec_rt.types import Codes

_GROUPS_HELD = 64
"""The number of row groups, of half a megabyte each, that stay decoded."""


class CodesDataset(Dataset[dict[str, Any]]):
    """The clips of a corpus as {"id": str, "codes": int64 [frames, Q], and ``columns``}.

    ``columns`` are any of the stored ones, such as "samples" or "text". ``crop_frames`` takes that
    many frames from a random place, by torch's generator, which a DataLoader seeds for each of its
    workers; shorter clips are left out, or with ``pad`` padded with -1. ``codebooks`` keeps only
    the first ones. It reads Parquet, .npz and .npy, each row on demand. Raises InputError and
    ConfigError.
    """

    def __init__(
        self,
        corpus: str | Path,
        *,
        crop_frames: int | None = None,
        codebooks: int | None = None,
        pad: bool = False,
        columns: Sequence[str] = (),
    ) -> None:
        files = list(code_files(corpus))
        self.info = _info(files, corpus)
        if codebooks is not None and not (is_count(codebooks) and codebooks <= self.info.codebooks):
            raise ConfigError(
                f"codebooks={codebooks}; the codes have {self.info.codebooks}: 1 to all of them"
            )
        if crop_frames is not None and not is_count(crop_frames):
            raise ConfigError(f"crop_frames={crop_frames}; a crop has one frame or more")
        self.crop_frames, self.codebooks, self.pad = crop_frames, codebooks, pad
        self.columns = tuple(columns)
        least = 1 if crop_frames is None or pad else crop_frames
        self._groups: list[tuple[Path, int]] = []
        self._rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        for path in files:
            self._index(path, least)
        self._ends = list(accumulate(map(len, self._rows)))
        if not len(self):
            raise ConfigError(
                f"{corpus} has no clip of {least} frames or more; give a smaller crop_frames, or "
                "pad=True"
            )
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        """Clips."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip, with a new random crop each time."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        group = bisect_right(self._ends, index)
        row = int(self._rows[group][index - (self._ends[group - 1] if group else 0)])
        name, codes, rest = self._row(group, row)
        return {"id": name, "codes": self._cropped(codes), **rest}

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded row groups, for the workers of a DataLoader."""
        return {**self.__dict__, "_held": OrderedDict()}

    def _index(self, path: Path, least: int) -> None:
        if path.suffix in (".npz", ".npy"):
            frames = np.array([len(next(iter(read_rows(path))).codes)]) if least > 1 else [least]
            self._add(path, 0, np.asarray(frames), least)
            return
        if path.suffix != ".parquet":
            raise InputError(f"{path}: CodesDataset reads .parquet, .npz and .npy")
        file = open_parquet(str(path))
        names = file.schema_arrow.names
        if missing := [name for name in OWN_COLUMNS[:5] if name not in names]:
            raise InputError(
                f"{path} holds no codes: the columns {', '.join(missing)} are missing; give a "
                "folder that encodec-rt tokenize wrote, or files in its data/"
            )
        for name in self.columns:
            if name not in names:
                there = ", ".join(names)
                raise ConfigError(f"{path} has no column {name!r}; it has {there}")
        for group in range(file.metadata.num_row_groups):
            frames = file.read_row_group(group, ["frames"]).column("frames").to_numpy()
            self._add(path, group, frames, least)

    def _add(self, path: Path, group: int, frames: Any, least: int) -> None:
        self._groups.append((path, group))
        self._rows.append(np.flatnonzero(frames >= least))

    def _row(self, group: int, row: int) -> tuple[str, Codes, dict[str, Any]]:
        path, number = self._groups[group]
        if path.suffix != ".parquet":
            found = next(iter(read_rows(path)))
            held = {**found.meta, **self._own(found)}
            missing = [name for name in self.columns if held.get(name) is None]
            if missing:
                raise ConfigError(f"{path} has no {', '.join(missing)}; leave that out of columns")
            return found.id, found.codes, {name: held[name] for name in self.columns}
        if group not in self._held:
            wanted = list(dict.fromkeys([*OWN_COLUMNS[:5], *self.columns]))
            self._held[group] = open_parquet(str(path)).read_row_group(number, wanted)
            if len(self._held) > _GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        table = self._held[group]
        found = row_from_parquet(table, row, meta=False)
        rest = {name: table.column(name)[row].as_py() for name in self.columns}
        return found.id, found.codes, rest

    def _own(self, clip: StoredClip) -> dict[str, Any]:
        """What Parquet has in columns of its own."""
        frames, books = clip.codes.shape
        return {
            **{"id": clip.id, "frames": frames, "codebooks": books, "samples": clip.samples},
            **{"sampling_rate": self.info.sampling_rate, "scales": list(clip.scales)},
        }

    def _cropped(self, codes: Codes) -> torch.Tensor:
        crop = self.crop_frames
        begin = 0
        if crop is not None and len(codes) > crop:
            begin = int(torch.randint(len(codes) - crop + 1, ()))
        end = None if crop is None else begin + crop
        taken = torch.from_numpy(codes[begin:end, : self.codebooks].astype(np.int64))
        if crop is not None and len(taken) < crop:
            missing = taken.new_full((crop - len(taken), taken.shape[1]), ABSENT)
            taken = torch.cat([taken, missing])
        return taken


def _info(files: Sequence[Path], corpus: str | Path) -> CodesInfo:
    found = info_of(files[0]) if files else None
    if found is None:
        raise InputError(f"{corpus} holds no codes from encodec-rt tokenize")
    return found
