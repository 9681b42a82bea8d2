"""Lists of files with start and end: CSV and TSV with a header, JSON lines, and plain text."""

from __future__ import annotations

import csv
import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from encodec_rt.corpus.units import FileEntry, as_id, state_of
from encodec_rt.errors import InputError

LIST_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".json", ".txt"))
META = "meta"
"""The column for everything without its own column: a JSON object, as text."""

_PATH = ("path", "file_name", "file", "filename", "audio_filepath", "audio")
_BEGIN = ("start", "begin", "offset")
_END = ("end",)
_DURATION = ("duration",)


def read_list(path: str) -> Iterator[FileEntry]:
    """The entries of a list. Raises InputError, naming the line, for an invalid one.

    Paths are relative to the folder of the list. A duration counts from the start; without a start
    it merely describes the file, and the whole file is taken.
    """
    folder = os.path.dirname(os.path.abspath(path))
    seen = Seen()
    for number, row in _rows(path):
        entry = _entry(f"{path}, line {number}", folder, row, table=path.endswith((".csv", ".tsv")))
        if not seen.add(entry.id):
            raise InputError(
                f"{path}, line {number}: the id {entry.id!r} occurs twice; add a column id "
                "with a unique name for each clip"
            )
        yield entry


def columns_of(path: str) -> list[str]:
    """The metadata columns that the entries of a list have."""
    if path.endswith(".txt"):
        return []
    if path.endswith((".json", ".jsonl")):
        return [META]
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            names = next(csv.reader(file, delimiter=_delimiter(path)), [])
    except csv.Error as error:
        raise InputError(f"{path} is not a list of files: {error}") from error
    names = [_readable(name) for name in names]
    return [name for name in names if name not in (*_PATH, *_BEGIN, *_END, "id")]


class Seen:
    """A set of names in eight bytes each; two names collide once in 10^19 pairs."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = array("Q")

    def add(self, name: str) -> bool:
        """Add ``name``; whether it is new."""
        digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        at = bisect_left(self._sorted, key)
        if key in self._recent or (at < len(self._sorted) and self._sorted[at] == key):
            return False
        self._recent.add(key)
        if len(self._recent) > 1 << 16:
            self._sorted = array("Q", sorted([*self._sorted, *self._recent]))
            self._recent.clear()
        return True


def _delimiter(path: str) -> str:
    return "\t" if path.endswith(".tsv") else ","


def _rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, fields by name)."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.endswith((".csv", ".tsv")):
                table = csv.DictReader(file, delimiter=_delimiter(path))
                for row in table:
                    if None in row or None in row.values():
                        raise InputError(
                            f"{path}, line {table.line_num}: not as many fields as the header has"
                        )
                    yield table.line_num, row
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                text = line.rstrip("\r\n")
                yield number, {"path": text} if path.endswith(".txt") else json.loads(text)
    except (csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a list of files: {error}") from error


def _entry(place: str, folder: str, row: Mapping[str, Any], *, table: bool) -> FileEntry:
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: expected a JSON object")
    found = next((row[name] for name in _PATH if row.get(name)), None)
    if not isinstance(found, str):
        raise InputError(f"{place}: no path; name the column {' or '.join(_PATH)}")
    begin, end = _seconds(place, row, _BEGIN), _seconds(place, row, _END)
    duration = _seconds(place, row, _DURATION)
    if end is None and begin is not None and duration is not None:
        end = begin + duration
    begin = begin or 0.0
    if end is not None and not end > begin:
        raise InputError(
            f"{place}: from {begin:g} s to {end:g} s; the end must come after the start"
        )
    if "\0" in found:
        raise InputError(f"{place}: a path with a zero byte")
    path = os.path.join(folder, _path(place, found))
    part = "" if not begin and end is None else f"@{begin:g}-{'' if end is None else f'{end:g}'}"
    name = row.get("id")
    given = str(name) if name not in (None, "") else as_id(os.path.normpath(found)) + part
    return FileEntry(_safe(place, given), path, *state_of(path), begin, end, _meta(row, table))


def _meta(row: Mapping[str, Any], table: bool) -> dict[str, str]:
    used = {*_PATH, *_BEGIN, *_END, "id"}
    rest = {name: value for name, value in row.items() if name not in used}
    if table:
        return {_readable(name): _readable(str(value)) for name, value in rest.items()}
    return {META: _readable(json.dumps(rest, sort_keys=True, ensure_ascii=False))} if rest else {}


def _path(place: str, text: str) -> str:
    """``text`` if a file can have that name: JSON can hold lone surrogates."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InputError(f"{place}: {text!r} is not a path") from None
    return text


def _readable(text: str) -> str:
    """Text of a list in Latin-1 or with a lone surrogate, its invalid bytes escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _safe(place: str, name: str) -> str:
    """The id, if it stays inside the output folder."""
    inside = name.lstrip("/")
    while inside.startswith("../"):
        inside = inside[3:]
    if ".." in Path(inside).parts or not inside or "\0" in inside:
        raise InputError(f"{place}: the id {name!r} leads outside the folder; give another")
    if not any("\ud800" <= one <= "\udfff" for one in inside):
        return inside
    return as_id(_path(place, inside))


def _seconds(place: str, row: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{place}: {value!r} is not a number of seconds")
    return seconds
