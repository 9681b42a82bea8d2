"""Where codes go: a Parquet file or a tar per unit, or a file per clip, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from encodec_rt.atomic import replacing
from encodec_rt.bitstream.container_writer import ContainerWriter
from encodec_rt.bitstream.ecdc import EcdcWriter, segments
from encodec_rt.container_audio import coder_of, header_for
from encodec_rt.corpus.rows import SinkContext, StoredClip, as_npy, described
from encodec_rt.corpus.shards import ParquetWriter, TarWriter
from encodec_rt.errors import ConfigError
from encodec_rt.streaming.codec import Codec


class UnitWriter(Protocol):
    """Takes the rows of one unit, in ``with``.

    When the block has succeeded, its ``files`` have their names and are on the disk.
    """

    bytes_written: int
    files: list[Path]

    def __enter__(self) -> UnitWriter: ...

    def __exit__(self, *exception: Any) -> None: ...

    def write(self, row: StoredClip) -> None:
        """Append a row. Raises OSError."""


def open_sink(kind: str, context: SinkContext, unit_name: str) -> UnitWriter:
    """A writer of the unit ``unit_name``. Raises ConfigError for an unknown kind."""
    check_sink(kind)
    return SINKS[kind](context, unit_name)


def check_sink(kind: str) -> None:
    """Raise ConfigError for an unknown kind."""
    if kind not in SINKS:
        raise ConfigError(f"format {kind!r}; accepted: {', '.join(SINKS)}")


def suffix_of(kind: str) -> str:
    """The suffix of a sink's files."""
    return {"webdataset": ".tar"}.get(kind, f".{kind}")


class FileWriter:
    """A file per clip, in the folders of its id."""

    suffix = ""

    def __init__(self, context: SinkContext, unit_name: str) -> None:
        self.bytes_written = 0
        self.files: list[Path] = []
        self._context = context

    def __enter__(self) -> FileWriter:
        """Self."""
        return self

    def __exit__(self, *exception: Any) -> None:
        """Sync to disk once for all files, which takes a hundredth of the time of one by one."""
        if exception[0] is None:
            os.sync()

    def write(self, row: StoredClip) -> None:
        """As UnitWriter."""
        path = self._context.folder / f"{row.id}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as part, part.open("wb") as file:
            self._put(row, file)
            file.flush()
            self.bytes_written += file.tell()
        self.files.append(path)

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
