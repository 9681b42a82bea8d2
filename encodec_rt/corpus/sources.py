"""From folders, globs, lists, tars, Parquet files and ``datasets`` objects to units.

Units are in the order of names, so that the same corpus always gives the same units.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from encodec_rt.corpus.clips import CorpusClip
from encodec_rt.corpus.labels import CONTAINER_SUFFIXES, Labels, expanded, labelled
from encodec_rt.corpus.lists import LIST_SUFFIXES, META, columns_of, read_list
from encodec_rt.corpus.manifest import STATE
from encodec_rt.corpus.tables import (
    ROWS_PER_UNIT,
    audio_column,
    dataset_clips,
    dataset_column,
    is_dataset,
    metadata_of,
    open_parquet,
    parquet_clips,
    row_groups,
)
from encodec_rt.corpus.tars import refusing, tar_clips
from encodec_rt.corpus.units import FileEntry, Unit, as_id, state_of
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.extras import needed_for
from encodec_rt.model.identity import file_sha256
from encodec_rt.suffixes import AUDIO_SUFFIXES

with needed_for("a corpus"):
    import pyarrow as pa

Input = Any
"""A path, a glob, or a ``datasets`` object."""
LIST_BYTES_PER_S = 32_000
"""The bytes that a second of a list's entry counts as, since parts of files have no size."""


@dataclass(frozen=True)
class UnitSize:
    """A unit of files ends after ``clips`` clips, or once its files exceed ``mib`` MiB."""

    clips: int = 1024
    mib: float = 32.0

    def check(self) -> None:
        """Raise ConfigError for impossible sizes."""
        if self.clips < 1 or not self.mib > 0:
            raise ConfigError(
                f"shards of {self.clips} clips and {self.mib} MiB; accepted: at least one clip, "
                "and more than 0 MiB"
            )


class Plan:
    """Iterates over the units of ``inputs``. Its attributes collect what it finds.

    ``columns`` are the metadata fields of all sources; ``left_out`` counts the files of folders
    whose names are not those of audio. With ``dedup`` byte-for-byte copies of earlier files are
    left out, which takes about 100 bytes of memory per file. Raises InputError for a missing input,
    and ConfigError for columns with the same name and different types.
    """

    def __init__(
        self,
        inputs: Input | Sequence[Input],
        size: UnitSize | None = None,
        *,
        column: str | None = None,
        dedup: bool = False,
    ) -> None:
        self.columns: dict[str, Any] = {}
        self.left_out = 0
        paths, self.datasets = _sorted_out(inputs)
        self._size = size or UnitSize()
        self._size.check()
        self._column = column
        self._hashes: dict[str, str] | None = {} if dedup else None
        self._paths = labelled([os.path.abspath(os.fspath(path)) for path in expanded(paths)])
        self._labels = Labels()
        if not self._paths and not self.datasets:
            raise InputError("there are no inputs; give files, folders, tars or Parquet files")

    @property
    def names(self) -> list[str]:
        """What the inputs are called."""
        return [*(path for path, _ in self._paths), *self.datasets]

    def __iter__(self) -> Iterator[Unit]:
        """The units, numbered."""
        for index, unit in enumerate(self._units()):
            yield replace(unit, index=index)

    def _units(self) -> Iterator[Unit]:
        yield from self._packed(self._found())
        for label, dataset in self.datasets.items():
            audio = dataset_column(dataset, self._column)
            self._add_columns(metadata_of(dataset.features.arrow_schema, audio), label)
            for first in range(0, dataset.num_rows, ROWS_PER_UNIT):
                count = min(ROWS_PER_UNIT, dataset.num_rows - first)
                reason = str(getattr(dataset, "_fingerprint", ""))
                yield Unit(0, "rows", label, label, first, count, reason=reason)

    def _found(self) -> Iterator[FileEntry | Unit]:
        """Files and containers in their order."""
        folders = [label for path, label in self._paths if os.path.isdir(path)]
        self._labels = Labels([*folders, *self.datasets])
        for path, label in self._paths:
            if os.path.isdir(path):
                yield from self._folder(path, label)
            elif path.lower().endswith(CONTAINER_SUFFIXES):
                yield from self._container(path, self._labels.of(label))
            elif os.path.splitext(path)[1].lower() in LIST_SUFFIXES:
                yield from self._list(path, label)
            else:
                yield FileEntry(as_id(label), path, *state_of(path))

    def _list(self, path: str, label: str) -> Iterator[FileEntry]:
        self._add_columns([pa.field(n, pa.string()) for n in columns_of(path)], path)
        alone = len(self._paths) + len(self.datasets) == 1
        prefix = "" if alone else as_id(self._labels.of(label)) + "/"
        for entry in read_list(path):
            yield replace(entry, id=prefix + entry.id)

    def _folder(self, path: str, label: str) -> Iterator[FileEntry | Unit]:
        prefix = f"{label}/" if label else ""
        for name in _walk(path, frozenset()):
            full, lower = os.path.join(path, name), name.lower()
            if lower.endswith(CONTAINER_SUFFIXES):
                yield from self._container(full, self._labels.of(prefix + name, full))
            elif os.path.splitext(lower)[1] in AUDIO_SUFFIXES:
                yield FileEntry(as_id(prefix + name), full, *state_of(full))
            else:
                self.left_out += 1

    def _container(self, path: str, label: str) -> Iterator[Unit]:
        size, mtime_ns = state_of(path)
        if not path.lower().endswith(".parquet"):
            self._add_columns([pa.field(META, pa.string())], path)
            yield Unit(0, "tar", path, as_id(label), size=size, mtime_ns=mtime_ns)
            return
        unit = Unit(0, "parquet", path, as_id(label), size=size, mtime_ns=mtime_ns)
        try:
            schema = open_parquet(path).schema_arrow
            audio = audio_column(schema, self._column, path)
            self._add_columns(metadata_of(schema, audio), path)
            for group, first, count in row_groups(path):
                yield replace(unit, group=group, first=first, count=count)
        except InputError as error:
            yield replace(unit, kind="bad", reason=str(error))

    def _add_columns(self, fields: Sequence[Any], where: str) -> None:
        for one in fields:
            kind = self.columns.setdefault(one.name, one.type)
            if kind != one.type:
                raise ConfigError(
                    f"{where} has a column {one.name!r} of {one.type}, and another source has one "
                    f"of {kind}; tokenise them into separate folders"
                )

    def _packed(self, found: Iterator[FileEntry | Unit]) -> Iterator[Unit]:
        entries: list[FileEntry] = []
        equal: list[tuple[str, str]] = []
        filled = 0.0
        for one in found:
            if isinstance(one, FileEntry) and (first := self._twin(one)):
                equal.append((one.id, first))
                continue
            if (isinstance(one, Unit) or self._full(entries, filled)) and (entries or equal):
                yield Unit(0, "files", files=tuple(entries), duplicates=tuple(equal))
                entries, equal, filled = [], [], 0.0
            if isinstance(one, Unit):
                yield one
                continue
            entries.append(one)
            filled += (
                one.size if one.end_s is None else (one.end_s - one.begin_s) * LIST_BYTES_PER_S
            )
        if entries or equal:
            yield Unit(0, "files", files=tuple(entries), duplicates=tuple(equal))

    def _full(self, entries: Sequence[FileEntry], filled: float) -> bool:
        return len(entries) >= self._size.clips or filled >= self._size.mib * 2**20

    def _twin(self, entry: FileEntry) -> str | None:
        """The id of an earlier file that this one equals, if any."""
        if self._hashes is None or entry.begin_s or entry.end_s is not None or entry.size < 0:
            return None
        try:
            digest = file_sha256(entry.path)
        except OSError:
            return None
        first = self._hashes.setdefault(digest, entry.id)
        return None if first == entry.id else first


def clips_of(unit: Unit, datasets: Mapping[str, Any], column: str | None) -> Iterator[CorpusClip]:
    """The clips of a unit, in order, each read when it is due."""
    if unit.kind == "files":
        for entry in unit.files:
            yield CorpusClip(
                entry.id, entry.path, _unchanged(entry), entry.begin_s, entry.end_s, entry.meta
            )
    elif unit.kind == "rows":
        yield from dataset_clips(unit, datasets[unit.source], column)
    elif unit.kind == "bad":
        yield CorpusClip(unit.label, unit.source, refusing(unit.reason))
    elif state_of(unit.source) != (unit.size, unit.mtime_ns):
        yield CorpusClip(unit.label, unit.source, refusing(_changed(unit.source)))
    elif unit.kind == "tar":
        yield from tar_clips(unit)
    else:
        yield from parquet_clips(unit, column)


def _sorted_out(inputs: Input | Sequence[Input]) -> tuple[list[str], dict[str, Any]]:
    """The paths among ``inputs``, and the datasets by the prefix of their ids.

    The parts of a DatasetDict keep their names. Raises InputError for anything else.
    """
    single = isinstance(inputs, (str, os.PathLike, Mapping)) or is_dataset(inputs)
    paths: list[str] = []
    datasets: dict[str, Any] = {}
    for at, each in enumerate([inputs] if single else inputs):
        if is_dataset(each):
            datasets[f"dataset-{at}"] = each
        elif isinstance(each, Mapping) and all(map(is_dataset, each.values())):
            datasets |= {f"{name}-{at}" if at else str(name): part for name, part in each.items()}
        elif isinstance(each, (str, os.PathLike)):
            paths.append(os.fspath(each))
        else:
            raise InputError(
                f"an input of type {type(each).__name__}; accepted: paths, and datasets that know "
                "how many rows they have (an IterableDataset does not: write it to Parquet)"
            )
    return paths, datasets


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """The files below ``folder``, relative to it, following links but not in circles.

    Output folders of corpora are skipped.
    """
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above or os.path.isdir(os.path.join(folder, STATE)):
        return
    above |= {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as entries:
        names = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    for name, is_folder in names:
        if is_folder:
            for inner in _walk(os.path.join(folder, name), above):
                yield f"{name}/{inner}"
        else:
            yield name


def _unchanged(entry: FileEntry) -> Any:
    def open_it() -> str:
        if entry.size >= 0 and state_of(entry.path) != (entry.size, entry.mtime_ns):
            raise InputError(_changed(entry.path))
        return entry.path

    return open_it


def _changed(path: str) -> str:
    if not os.path.exists(path):
        return f"{path} is no longer there; it was when the run began"
    return f"{path} has changed since the run began; start a new output folder"
