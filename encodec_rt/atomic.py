"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encodec_rt.errors import InputError


def check_target(path: str | Path, *, force: bool) -> Path:
    """Where a new file ``path`` will lie, links followed.

    Raises InputError if it exists and ``force`` is not set, if its folder does not exist, or if
    it is something that a rename would destroy: a folder, a device or a named pipe.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is no regular file; give a file name, or '-' for standard output")
    if target.exists() and not force:
        raise InputError(f"{path} exists; --force replaces it")
    return target


@contextmanager
def replacing(path: str | Path, *, force: bool) -> Iterator[Path]:
    """A temporary file's path beside ``path``, which it replaces when the block ends well.

    An exception or an interrupt removes the temporary file and leaves ``path`` as it was.
    """
    target = check_target(path, force=force)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
