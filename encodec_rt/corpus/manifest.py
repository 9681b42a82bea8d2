"""The output folder: how it was made, which units are finished, and a lock for the current run.

``manifest.json`` holds everything that the codes depend on, and a run that differs in any of it is
refused. Beside it a hidden folder holds the plan, a line per unit, and a record of each finished
unit. A record is written after the unit's output is on the disk, so a unit interrupted by anything,
even a crash of the machine, is done again, to the same bytes.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encodec_rt.atomic import replacing
from encodec_rt.corpus.units import Unit
from encodec_rt.errors import ConfigError, InputError, StateError

MANIFEST = "manifest.json"
STATE = ".encodec-rt"


class OutputFolder:
    """The folder that a corpus goes to."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.data = self.path / "data"
        self._state = self.path / STATE
        self._units = self._state / "units"
        self._plan = self._state / "plan.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, and lock it. Raises StateError if another run has it.

        Incomplete files of a killed run are removed.
        """
        if self.path.is_dir():
            names = set(os.listdir(self.path))
            # Another program's folder may have a manifest.json too.
            ours = {STATE, MANIFEST} <= names or names <= {STATE, self.data.name}
            if not ours or names == {self.data.name}:
                raise InputError(f"{self.path} is not empty and holds no corpus; give a new folder")
        for folder in (self.data, self._units):
            folder.mkdir(parents=True, exist_ok=True)
        with open(self._state / "lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another run is writing to {self.path}; wait for it") from None
            for part in self.path.rglob(".*.part"):
                part.unlink(missing_ok=True)
            yield

    def begin(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the folder is new; otherwise its manifest is compared.

        Raises ConfigError, naming the difference.
        """
        path = self.path / MANIFEST
        if not path.exists():
            write_json(path, manifest)
            return True
        held, wanted = _flat(read_json(path)), _flat(_plain(manifest))
        for name in sorted({*held, *wanted}):
            if held.get(name) != wanted.get(name):
                one, other = _shown(held.get(name)), _shown(wanted.get(name))
                raise ConfigError(
                    f"{self.path} was begun with {name} {one}, but this run has {other}; give a "
                    "new folder, or the same settings"
                )
        return False

    def keep_plan(self, units: Iterable[Unit]) -> int:
        """Write the plan, or compare it with the existing one -> number of units.

        Raises InputError if the corpus has changed, or holds nothing.
        """
        if self._plan.exists():
            return self._compare(units)
        count = 0
        whole = replacing(self._plan, force=True, durable=True)
        with whole as part, part.open("w", encoding="utf-8") as file:
            for unit in units:
                file.write(unit.to_line() + "\n")
                count += 1
            if not count:
                raise InputError("the inputs hold nothing to work on; give others")
        return count

    def units(self) -> Iterator[Unit]:
        """The units of the plan, in order."""
        with self._plan.open(encoding="utf-8") as file:
            yield from map(Unit.from_line, file)

    def places(self) -> Iterator[int]:
        """Where in the plan each unit's line begins, for ``unit_at``."""
        at = 0
        with self._plan.open("rb") as file:
            for line in file:
                yield at
                at += len(line)

    def unit_at(self, place: int) -> Unit:
        """The unit of the line that begins there."""
        with self._plan.open("rb") as file:
            file.seek(place)
            return Unit.from_line(file.readline().decode())

    def is_finished(self, index: int) -> bool:
        """Whether a unit is."""
        return self._record(index).exists()

    def forget_damaged(self, count: int) -> int:
        """Mark for repetition those of ``count`` units whose files were deleted or cut -> how many.

        A file of another size than was written counts as cut; what is in it is not read.
        """
        damaged = 0
        for index in range(count):
            if self.is_finished(index) and not self._is_whole(read_json(self._record(index))):
                self._record(index).unlink()
                damaged += 1
        return damaged

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        if "files" not in record:
            return True
        names: list[str] = record["files"]
        written: int = record["bytes"]
        try:
            return sum((self.data / name).stat().st_size for name in names) == written
        except (FileNotFoundError, NotADirectoryError):
            return False

    def finish(self, index: int, record: Mapping[str, Any]) -> None:
        """Record a unit as finished; its output must be on the disk."""
        write_json(self._record(index), record, indent=None)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished units, in order."""
        for index in itertools.count():
            path = self._record(index)
            if not path.exists():
                return
            yield read_json(path)

    def _record(self, index: int) -> Path:
        # In folders of a thousand, which every file system handles well.
        return self._units / f"{index // 1000:06d}" / f"{index:06d}.json"

    def _compare(self, units: Iterable[Unit]) -> int:
        count = 0
        for old, new in itertools.zip_longest(self.units(), units):
            if old is None or new is None or old.to_line() != new.to_line():
                raise InputError(
                    f"the corpus has changed since {self.path} was begun: {_difference(old, new)}; "
                    "give a new folder"
                )
            count += 1
        return count


def _difference(old: Unit | None, new: Unit | None) -> str:
    """The first thing that two units differ in."""
    if old is None or new is None:
        unit = old or new
        assert unit is not None
        name = unit.files[0].id if unit.files else unit.label
        return f"{name} was {'added' if old is None else 'taken away'}"
    for before, after in itertools.zip_longest(old.files, new.files):
        if before == after:
            continue
        if before is None or (after is not None and after.id < before.id):
            return f"{after.id} was added"
        if after is None or after.id > before.id:
            return f"{before.id} was removed"
        return f"{before.id} was changed"
    return f"{new.label or new.name} was changed"


def write_json(path: Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a file that appears only when complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=indent, sort_keys=True, ensure_ascii=True)
    with replacing(path, force=True, durable=True) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises InputError for anything else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; give a new folder") from error
    if not isinstance(held, dict):
        raise InputError(f"{path} is damaged: it holds no object; give a new folder")
    return held


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested objects as one, with dots in its names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{above}{name}.") if inner else {above + name: value}
    return found


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
