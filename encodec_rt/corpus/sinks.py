"""Where codes go: a Parquet file or a tar per unit, or a file per clip. All appear whole."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from encodec_rt.atomic import naming, replacing
from encodec_rt.bitstream.container_writer import ContainerWriter
from encodec_rt.bitstream.ecdc import EcdcWriter, segments
from encodec_rt.container_audio import coder_of, header_for
from encodec_rt.corpus.rows import CodesInfo, StoredClip
from encodec_rt.errors import ConfigError
from encodec_rt.extras import needed_for
from encodec_rt.streaming.codec import Codec
from encodec_rt.suffixes import AUDIO_SUFFIXES

with needed_for("a corpus"):
    import pyarrow as pa
    import pyarrow.parquet as pq

INFO_KEY = b"encodec_rt"
"""Of the metadata of a Parquet file: what its codes were made by."""
ROW_GROUP_CODES = 1 << 18
"""Half a megabyte, so that a single row is read quickly wherever it is."""
OWN_COLUMNS = ("id", "codes", "frames", "codebooks", "samples", "sampling_rate", "scales")


class UnitWriter(Protocol):
    """Takes the rows of one unit. Used in ``with``: what it wrote appears when that ends well."""

    bytes_written: int

    def __enter__(self) -> UnitWriter: ...

    def __exit__(self, *exception: Any) -> None: ...

    def write(self, row: StoredClip) -> None:
        """Append a row. Raises OSError."""


@dataclass(frozen=True)
class SinkContext:
    """What every sink knows: where, what the codes are, and the metadata columns by type."""

    folder: Path
    info: CodesInfo
    columns: Mapping[str, Any]
    codec: Codec


def open_sink(kind: str, context: SinkContext, unit_name: str) -> UnitWriter:
    """A writer of the unit ``unit_name``. Raises ConfigError for an unknown kind."""
    check_sink(kind)
    return SINKS[kind](context, unit_name)


def check_sink(kind: str) -> None:
    """Raise ConfigError for an unknown kind."""
    if kind not in SINKS:
        raise ConfigError(f"format {kind!r}; accepted: {', '.join(SINKS)}")


def suffix_of(kind: str) -> str:
    """How the files of a sink end."""
    return {"webdataset": ".tar"}.get(kind, f".{kind}")


def stored_name(name: str) -> str:
    """What a metadata column is called in the output, where some names are taken."""
    return f"source_{name}" if name in OWN_COLUMNS else name


class ParquetWriter:
    """One file of rows. Codes are flat lists, row after row of [frames, codebooks]."""

    def __init__(self, context: SinkContext, unit_name: str) -> None:
        self.bytes_written = 0
        self._context = context
        self._path = context.folder / f"{unit_name}.parquet"
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
        """Begin the file, beside its name."""
        self._part = self._stack.enter_context(replacing(self._path, force=True))
        # pyarrow opens no name that is not UTF-8; of a file that is open it needs none.
        self._file = self._stack.enter_context(self._part.open("wb"))
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(self._file, self._schema, compression="zstd")
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        """Finish it, and give it its name."""
        if exception[0] is None:
            self._flush()
            self._writer.close()
            self._file.flush()
            self.bytes_written = self._part.stat().st_size
        self._stack.__exit__(*exception)

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
        self._keys: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> TarWriter:
        """Begin the file, beside its name."""
        self._part = self._stack.enter_context(replacing(self._path, force=True))
        self._tar = self._stack.enter_context(
            tarfile.open(self._part, "w", format=tarfile.PAX_FORMAT)
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        """Finish it, and give it its name."""
        if exception[0] is None:
            self._tar.close()
            self.bytes_written = self._part.stat().st_size
        self._stack.__exit__(*exception)

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
        """A key without dots, since a suffix begins at the first one."""
        folder, slash, base = without_suffix(name).rpartition("/")
        wanted = folder + slash + base.replace(".", "_")
        key, number = wanted, 1
        while key in self._keys:
            number += 1
            key = f"{wanted}-{number}"
        self._keys.add(key)
        return key


class FileWriter:
    """A file per clip, in folders as its id has them."""

    suffix = ""

    def __init__(self, context: SinkContext, unit_name: str) -> None:
        self.bytes_written = 0
        self._context = context

    def __enter__(self) -> FileWriter:
        """Self."""
        return self

    def __exit__(self, *exception: Any) -> None:
        """Nothing is open."""

    def write(self, row: StoredClip) -> None:
        """As UnitWriter."""
        path = self._context.folder / f"{row.id}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as part, part.open("wb") as file:
            self._put(row, file)
            file.flush()
            self.bytes_written += file.tell()

    def _put(self, row: StoredClip, file: BinaryIO) -> None:
        raise AssertionError("of each format its own")


class NpyWriter(FileWriter):
    """Codes uint16 [frames, codebooks], and nothing else."""

    suffix = ".npy"

    def _put(self, row: StoredClip, file: BinaryIO) -> None:
        file.write(as_npy(row))


class NpzWriter(FileWriter):
    """``codes``, ``samples``, ``scales`` and ``json`` with the rest."""

    suffix = ".npz"

    def _put(self, row: StoredClip, file: BinaryIO) -> None:
        rest = json.dumps(described(row, self._context.info), sort_keys=True, default=str)
        np.savez(
            file,
            codes=row.codes,
            samples=np.int64(row.samples or 0),
            scales=np.asarray(row.scales, np.float32),
            json=np.array(rest),
        )


class EcdcFileWriter(FileWriter):
    """The format of the original package."""

    suffix = ".ecdc"

    def _put(self, row: StoredClip, file: BinaryIO) -> None:
        codec, samples = self._context.codec, cast("int", row.samples)
        with EcdcWriter(codec.config, codec.name, row.codes.shape[1]) as writer:
            for codes, scale in pieces(row, codec):
                writer.write(codes, scale)
            writer.finish(file, samples)


class EncodecFileWriter(FileWriter):
    """The container of this package."""

    suffix = ".encodec"

    def _put(self, row: StoredClip, file: BinaryIO) -> None:
        codec = self._context.codec
        header = header_for(codec, row.codes.shape[1], start="exact")
        writer = ContainerWriter(
            file, header, coder_of(header), fields=[("MODEL", codec.name), ("ID", row.id)]
        )
        for codes, scale in pieces(row, codec):
            writer.write(codes, scale)
        writer.finish(cast("int", row.samples))


SINKS: Mapping[str, Callable[[SinkContext, str], UnitWriter]] = {
    "parquet": ParquetWriter,
    "webdataset": TarWriter,
    "npz": NpzWriter,
    "npy": NpyWriter,
    "ecdc": EcdcFileWriter,
    "encodec": EncodecFileWriter,
}


def pieces(row: StoredClip, codec: Codec) -> list[tuple[Any, float | None]]:
    """(codes, scale) of each segment of a row, or of all of it."""
    if not codec.segmented:
        return [(row.codes, None)]
    found, at = [], 0
    for index, (_, frames) in enumerate(segments(codec.config, cast("int", row.samples))):
        scale = row.scales[index] if codec.config.normalize else None
        found.append((row.codes[at : at + frames], scale))
        at += frames
    return found


def described(row: StoredClip, info: CodesInfo) -> dict[str, Any]:
    """All of a row but its codes, and what made them, for JSON."""
    meta = {stored_name(name): value for name, value in row.meta.items()}
    scales = {"scales": list(row.scales)} if row.scales else {}
    own = {"id": row.id, "samples": row.samples, "sampling_rate": info.sampling_rate}
    return {**meta, **own, **scales, "encodec_rt": json.loads(info.to_json())}


def as_npy(row: StoredClip) -> bytes:
    """The codes as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(row.codes), allow_pickle=False)
    return file.getvalue()


def without_suffix(name: str) -> str:
    """An id without the suffix of the audio file that it was."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in AUDIO_SUFFIXES else name
