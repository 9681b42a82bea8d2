"""Tables with an audio column in Hugging Face's layout: Parquet files, and ``datasets`` objects."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from encodec_rt.corpus.clips import CorpusClip
from encodec_rt.corpus.tars import refusing
from encodec_rt.corpus.units import Unit
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.extras import needed_for

with needed_for("a corpus of tables"):
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 8
"""Rows whose audio is held at a time."""
ROWS_PER_UNIT = 256
"""Of a ``datasets`` object; in Parquet a row group is a unit."""


def open_parquet(path: str) -> Any:
    """A ParquetFile that is read in pages. Raises InputError for what is not one."""
    try:
        if not _is_utf8(path):
            return pq.ParquetFile(open(path, "rb"), pre_buffer=False)
        return pq.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a Parquet file that can be read: {reason}") from error


def _is_utf8(path: str) -> bool:
    """Whether pyarrow can open ``path`` by its name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def audio_column(schema: Any, wanted: str | None, name: str) -> str:
    """The column with the audio: the one wanted, the one of type Audio, or "audio".

    It holds bytes, paths, or both in a struct. Raises ConfigError.
    """
    if wanted is None:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
        marked = [key for key, kind in features.items() if kind.get("_type") == "Audio"]
        wanted = (marked or ["audio"])[0]
    if wanted not in schema.names or _kind(schema.field(wanted).type) is None:
        raise ConfigError(
            f"{name} has no audio column {wanted!r} of bytes, paths or both; its columns are "
            f"{', '.join(schema.names)}; name one with --audio-column"
        )
    return wanted


def metadata_of(schema: Any, audio: str) -> list[Any]:
    """The fields of all other columns."""
    return [field.remove_metadata() for field in schema if field.name != audio]


def row_groups(path: str) -> Iterator[tuple[int, int, int]]:
    """(group, first row, rows) of a Parquet file."""
    footer = open_parquet(path).metadata
    first = 0
    for group in range(footer.num_row_groups):
        rows = footer.row_group(group).num_rows
        yield group, first, rows
        first += rows


def parquet_clips(unit: Unit, column: str | None) -> Iterator[CorpusClip]:
    """The clips of a row group."""
    row = unit.first
    folder = os.path.dirname(unit.source)
    try:
        file = open_parquet(unit.source)
        audio = audio_column(file.schema_arrow, column, unit.source)
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[unit.group]):
            yield from _clips(batch, audio, unit.label, row, folder)
            row += batch.num_rows
    except (pa.ArrowException, OSError, InputError) as error:
        reason = f"{unit.source} cannot be read from row {row} on: {error}"
        yield CorpusClip(f"{unit.label}/from row {row}", unit.source, refusing(reason))


def dataset_clips(unit: Unit, dataset: Any, column: str | None) -> Iterator[CorpusClip]:
    """The clips of some rows of a ``datasets`` object, without its decoder."""
    table = dataset.with_format("arrow")
    for first in range(unit.first, unit.first + unit.count, ROWS_AT_ONCE):
        rows = table[first : min(first + ROWS_AT_ONCE, unit.first + unit.count)]
        audio = dataset_column(dataset, column)
        yield from _clips(rows, audio, unit.label, first, "")


def is_dataset(given: object) -> bool:
    """Whether ``given`` is a Dataset of Hugging Face, which is not imported to find out."""
    return all(hasattr(given, name) for name in ("features", "with_format", "num_rows"))


def dataset_column(dataset: Any, wanted: str | None) -> str:
    """As ``audio_column``, of a ``datasets`` object."""
    if wanted is None:
        marked = [n for n, kind in dataset.features.items() if type(kind).__name__ == "Audio"]
        wanted = marked[0] if marked else None
    return audio_column(dataset.features.arrow_schema, wanted, "the dataset")


def _clips(rows: Any, audio: str, label: str, first: int, folder: str) -> Iterator[CorpusClip]:
    rest = rows.select([name for name in rows.schema.names if name != audio]).to_pylist()
    values = rows.column(audio)
    for offset in range(rows.num_rows):
        held, path = _held(values[offset].as_py())
        name = f"{label}/{first + offset:07d}"
        source = f"{label}, row {first + offset}" + (f" ({path})" if path else "")
        meta = rest[offset] if rest else {}
        yield CorpusClip(name, source, _opening(held, path, folder, source), meta=meta)


def _held(value: object) -> tuple[bytes | None, str | None]:
    """The bytes and the path of a cell."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value, None
    return None, value if isinstance(value, str) else None


def _opening(held: bytes | None, path: str | None, folder: str, source: str) -> Any:
    def open_it() -> Path | BinaryIO:
        if held is not None:
            return io.BytesIO(held)
        if path is None:
            raise InputError(f"{source} has no audio: the cell is empty")
        return Path(folder, path)

    return open_it


def _kind(kind: Any) -> str | None:
    """What a column holds, or None where that is not audio."""
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        return "struct" if names & {"bytes", "path"} else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    return "path" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None
