"""The prefixes of the ids of each input's clips, so that no two clips have the same id."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from encodec_rt.corpus.lists import LIST_SUFFIXES
from encodec_rt.corpus.tars import TAR_SUFFIXES
from encodec_rt.corpus.units import as_id
from encodec_rt.errors import InputError

CONTAINER_SUFFIXES = (*TAR_SUFFIXES, ".parquet")


class Labels:
    """The labels of tars, Parquet files and lists: their names without the suffix.

    Where something else has that name, one of ``taken`` or an earlier container, the suffix stays.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def of(self, name: str, path: str | None = None) -> str:
        """The label of the container ``name``; with ``path``, a folder beside it has it first."""
        suffixes = (*CONTAINER_SUFFIXES, *sorted(LIST_SUFFIXES))
        suffix = next((one for one in suffixes if name.lower().endswith(one)), "")
        label = name[: len(name) - len(suffix)]
        beside = path is not None and os.path.isdir(path[: len(path) - len(suffix)])
        if beside or label in self._taken:
            return name
        self._taken.add(label)
        return label


def expanded(paths: Sequence[Any]) -> Iterator[str]:
    """Globs as the names that they match, in order. Raises InputError for missing inputs."""
    for given in paths:
        path = os.fspath(given)
        if os.path.lexists(path):
            yield path
            continue
        found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
        if not found:
            kind = "matches nothing" if glob.has_magic(path) else "does not exist"
            raise InputError(f"{as_id(path)} {kind}; give files, folders, tars or Parquet files")
        yield from found


def labelled(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Each path with the prefix of its ids: nothing for a single folder, else its last names.

    As many names are taken as are needed to tell the inputs apart.
    """
    if len(paths) == 1:
        return [(paths[0], "" if os.path.isdir(paths[0]) else os.path.basename(paths[0]))]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"{as_id(twice)} is given twice; name each input once")
    parts = [path.strip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(each[-depth:]) for each in parts]
        if len(set(labels)) == len(labels):
            return list(zip(paths, labels, strict=True))
    return []
