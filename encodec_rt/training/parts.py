"""Splitting a large file, such as a checkpoint, where only small files can be transferred.

A folder of parts holds the parts and ``parts.json``: the file's name and SHA-256, and the name,
size and SHA-256 of every part, in order. Joining checks all of them before the file appears.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from encodec_rt.atomic import check_target, replacing
from encodec_rt.errors import InputError

TABLE = "parts.json"
PART_MIB = 15.0


def split_file(path: Path, folder: Path, *, part_mib: float = PART_MIB) -> int:
    """Split ``path`` into parts of at most ``part_mib`` MiB in ``folder`` -> the number of parts.

    Raises InputError if ``path`` is not a file, ``folder`` is not empty, or the size is out of
    range.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; name the checkpoint or other file to split")
    if not 0 < part_mib <= 1 << 20:
        raise InputError(f"parts of {part_mib} MiB; accepted: above 0, up to {1 << 20}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new name for the parts")
    folder.mkdir(parents=True, exist_ok=True)
    # read() allocates the whole size at once, even if the file is smaller.
    size = max(1, min(int(part_mib * 2**20), path.stat().st_size))
    whole = hashlib.sha256()
    parts: list[dict[str, Any]] = []
    with path.open("rb") as file:
        while (content := file.read(size)) or not parts:
            whole.update(content)
            name = f"part-{len(parts):03d}"
            (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"name": name, "size": len(content), "sha256": digest})
    table = {"file": path.name, "sha256": whole.hexdigest(), "parts": parts}
    with replacing(folder / TABLE, force=False) as partial:
        partial.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return len(parts)


def join_file(folder: Path, path: Path, *, force: bool = False) -> None:
    """Join the parts in ``folder`` into ``path``.

    Raises InputError, and leaves no file, unless every part is there and has its SHA-256.
    """
    table = _read_table(folder)
    check_target(path, force=force)
    whole = hashlib.sha256()
    with replacing(path, force=force) as partial, partial.open("wb") as file:
        for part in table["parts"]:
            content = _checked(folder, part)
            whole.update(content)
            file.write(content)
        if whole.hexdigest() != table["sha256"]:
            raise InputError(f"the parts in {folder} do not make up the file they were split from")


def _checked(folder: Path, part: dict[str, Any]) -> bytes:
    source = folder / Path(part["name"]).name
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source} is missing; transfer all parts that {TABLE} names") from error
    if hashlib.sha256(content).hexdigest() != part["sha256"]:
        raise InputError(
            f"{source} is damaged: its {len(content)} bytes do not have the SHA-256 of the "
            f"{part['size']} bytes that were written; transfer it again"
        )
    return content


def _read_table(folder: Path) -> dict[str, Any]:
    try:
        table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        parts = [
            {"name": str(p["name"]), "size": int(p["size"]), "sha256": str(p["sha256"])}
            for p in table["parts"]
        ]
        return {"file": str(table["file"]), "sha256": str(table["sha256"]), "parts": parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no {TABLE} that can be read: {error}") from error
