"""A Parquet file or a tar for each unit, written row by row; it appears only when complete."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import ExitStack
from typing import Any

import numpy as np

from encodec_rt.atomic import naming, replacing
from encodec_rt.corpus.rows import (
    INFO_KEY,
    SinkContext,
    StoredClip,
    as_npy,
    described,
    stored_name,
)
from encodec_rt.extras import needed_for
from encodec_rt.suffixes import AUDIO_SUFFIXES

with needed_for("a corpus"):
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_CODES = 1 << 18
"""Half a megabyte, so that any single row can be read quickly."""


class ParquetWriter:
    """One file of rows. Codes are flat lists, row after row of [frames, codebooks]."""

    def __init__(self, context: SinkContext, unit_name: str) -> None:
        self.bytes_written = 0
        self._context = context
        self._path = context.folder / f"{unit_name}.parquet"
        self.files = [self._path]
        self._rows: list[StoredClip] = []
        self._held = 0
        self._stack = ExitStack()
        self._meta = [pa.field(stored_name(name), kind) for name, kind in context.columns.items()]
        own = [
            pa.field("id", pa.string()),
            pa.field("codes", pa.list_(pa.uint16())),
            pa.field("frames", pa.int32()),
            pa.field("codebooks", pa.int32()),
            pa.field("samples", pa.int64()),
            pa.field("sampling_rate", pa.int32()),
        ]
        if context.codec.segmented:
            own.append(pa.field("scales", pa.list_(pa.float32())))
        described = {INFO_KEY: context.info.to_json().encode()}
        self._schema = pa.schema([*own, *self._meta], metadata=described)

    def __enter__(self) -> ParquetWriter:
        """Start the file, under a temporary name."""
        self._part = self._stack.enter_context(replacing(self._path, force=True, durable=True))
        # pyarrow cannot open names that are not UTF-8, so it gets an open file.
        self._file = self._stack.enter_context(self._part.open("wb"))
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(self._file, self._schema, compression="zstd")
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        """Finish it, and give it its name."""
        if exception[0] is not None:
            self._stack.__exit__(*exception)
            return
        with self._stack, naming(self._path):
            self._flush()
            self._writer.close()
            self._file.flush()
            self.bytes_written = self._part.stat().st_size

    def write(self, row: StoredClip) -> None:
        """As UnitWriter."""
        self._rows.append(row)
        self._held += row.codes.size
        if self._held >= ROW_GROUP_CODES:
            self._flush()

    def _flush(self) -> None:
        rows, info = self._rows, self._context.info
        if not rows:
            return
        flat = np.concatenate([row.codes.reshape(-1) for row in rows])
        offsets = np.cumsum([0, *(row.codes.size for row in rows)])
        columns: list[Any] = [
            pa.array([row.id for row in rows], pa.string()),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, pa.uint16())),
            pa.array([len(row.codes) for row in rows], pa.int32()),
            pa.array([row.codes.shape[1] for row in rows], pa.int32()),
            pa.array([row.samples for row in rows], pa.int64()),
            pa.array([info.sampling_rate] * len(rows), pa.int32()),
        ]
        if self._context.codec.segmented:
            columns.append(pa.array([row.scales for row in rows], pa.list_(pa.float32())))
        for name, kind in self._context.columns.items():
            columns.append(pa.array([row.meta.get(name) for row in rows], kind))
        with naming(self._path):
            self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows, self._held = [], 0


class TarWriter:
    """A WebDataset shard: ``KEY.codes.npy`` and ``KEY.json`` with the rest, id included."""

    def __init__(self, context: SinkContext, unit_name: str) -> None:
        self.bytes_written = 0
        self._info = context.info
        self._path = context.folder / f"{unit_name}.tar"
        self.files = [self._path]
        self._keys: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> TarWriter:
        """Start the file, under a temporary name."""
        self._part = self._stack.enter_context(replacing(self._path, force=True, durable=True))
        self._tar = self._stack.enter_context(
            tarfile.open(self._part, "w", format=tarfile.PAX_FORMAT)
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        """Finish it, and give it its name."""
        if exception[0] is not None:
            self._stack.__exit__(*exception)
            return
        with self._stack, naming(self._path):
            self._tar.close()
            self.bytes_written = self._part.stat().st_size

    def write(self, row: StoredClip) -> None:
        """As UnitWriter."""
        key = self._key(row.id)
        with naming(self._path):
            self._add(f"{key}.codes.npy", as_npy(row))
            rest = described(row, self._info)
            self._add(f"{key}.json", json.dumps(rest, sort_keys=True, default=str).encode())

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def _key(self, name: str) -> str:
        """A key without dots, since the suffix begins at the first one."""
        folder, slash, base = without_suffix(name).rpartition("/")
        wanted = folder + slash + base.replace(".", "_")
        key, number = wanted, 1
        while key in self._keys:
            number += 1
            key = f"{wanted}-{number}"
        self._keys.add(key)
        return key


def without_suffix(name: str) -> str:
    """An id without the audio file's suffix."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in AUDIO_SUFFIXES else name
