"""How a corpus of codes is divided into units to decode, and which clips have the same name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from encodec_rt.corpus.lists import Seen
from encodec_rt.corpus.records import Failure, UnitRecord
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.stored import code_files, code_folder
from encodec_rt.corpus.units import FileEntry, Unit, as_id, state_of

SHARD_SUFFIXES = (".parquet", ".tar")


def decoding_units(paths: Sequence[tuple[str, str]], size: UnitSize) -> Iterator[Unit]:
    """A unit for each shard, and for some files of a clip each."""
    index, entries, seen = 0, list[FileEntry](), Seen()
    # Ids are unique in a corpus; shards that are named one by one may be of several.
    several = len({os.path.dirname(path) for path, _ in paths if path.endswith(SHARD_SUFFIXES)}) > 1
    for path, label in paths:
        for file in code_files(path):
            base = code_folder(Path(path))
            inside = str(file.relative_to(base)) if os.path.isdir(path) else ""
            name = as_id("/".join(part for part in (label, inside) if part))
            state = state_of(str(file))
            if file.suffix in SHARD_SUFFIXES:
                folder = os.path.dirname(inside)
                prefix = "/".join(part for part in (label, folder) if part) if inside else ""
                if several and not inside:
                    prefix = label.removesuffix(file.suffix)
                yield Unit(
                    index, "codes", str(file), as_id(prefix), size=state[0], mtime_ns=state[1]
                )
                index += 1
                continue
            stem = name.removesuffix(file.suffix)
            # If two formats have the same name, the second keeps its suffix.
            entries.append(FileEntry(stem if seen.add(stem) else name, str(file), *state))
            if len(entries) >= size.clips:
                yield Unit(index, "codes", files=tuple(entries))
                index, entries = index + 1, []
    if entries:
        yield Unit(index, "codes", files=tuple(entries))


def with_replaced(records: Iterable[UnitRecord], units: Iterable[Unit]) -> Iterator[UnitRecord]:
    """The records of ``units``, with a failure for each file that an earlier unit wrote too."""
    seen = Seen()
    for record, unit in zip(records, units, strict=False):
        twice = [name for name in record.files if not seen.add(name)]
        failures = [Failure(name, unit.source or name, _REPLACED) for name in twice]
        yield replace(record, failures=[*record.failures, *failures])


_REPLACED = (
    "a clip of another shard has this id too, and one's audio replaced the other's; decode these "
    "shards into separate folders"
)
