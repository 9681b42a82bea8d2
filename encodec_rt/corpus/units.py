"""Units: the pieces of a corpus that are worked on, written and resumed as a whole.

A unit is a value that can be written as a line of JSON; its output depends on nothing else. So it
does not matter which process works on it, when, or how often.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["files", "tar", "parquet", "rows", "bad", "codes"]


@dataclass(frozen=True)
class FileEntry:
    """A file, or a part of one: its id, where it is, its state when the plan was made.

    ``size`` and ``mtime_ns`` are those of the file, -1 where it could not be looked at. ``meta``
    are the columns of a list.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    begin_s: float = 0.0
    end_s: float | None = None
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """Some files, a tar, or some rows of a table.

    ``source`` is the container's path, ``label`` what its clips' ids begin with, ``first`` and
    ``count`` its rows, ``group`` its row group. ``duplicates`` are (id, id of the file that it is
    equal to), left out. ``reason`` says why a "bad" one cannot be read.
    """

    index: int
    kind: Kind
    source: str = ""
    label: str = ""
    first: int = 0
    count: int = 0
    group: int = 0
    size: int = 0
    mtime_ns: int = 0
    reason: str = ""
    files: tuple[FileEntry, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What its output is called."""
        return f"part-{self.index:06d}"

    def to_line(self) -> str:
        """One line of JSON, without its end; names that are not UTF-8 are escaped."""
        held = {name: value for name, value in asdict(self).items() if value not in ("", 0, ())}
        return json.dumps({"index": self.index, **held}, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_line(line: str) -> Unit:
        """What ``to_line`` wrote."""
        held: dict[str, Any] = json.loads(line)
        held["files"] = tuple(FileEntry(**entry) for entry in held.get("files", ()))
        held["duplicates"] = tuple((one, other) for one, other in held.get("duplicates", ()))
        return Unit(**held)


def as_id(path: str) -> str:
    """A path as an id: bytes that are not UTF-8 are escaped, and so are backslashes."""
    return as_text(path.replace("\\", "\\\\"))


def as_text(text: str) -> str:
    """Text that may hold a path, for people: bytes that are not UTF-8 are escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def state_of(path: str) -> tuple[int, int]:
    """(size, time of the last change in ns) of a file, (-1, -1) where it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
