"""What came of kernels that were compiled before, so that only those that changed are compiled.

A kernel is known by all that its machine code depends on: its source with that of whatever it
calls, its arguments' types and alignments, its constants and options, the architecture, Triton,
Python, and how this gate reads a listing. One JSON file each, in a folder that may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import triton

from tests.aot.compiled import Compiled
from tests.aot.loops import Loop

READERS = tuple(Path(__file__).with_name(name) for name in ("gate.py", "compiled.py", "loops.py"))


def key_of(kernel: Any, specialization: str, options: dict[str, Any], arch: int) -> str:
    """The name of one compilation of ``kernel``, a JITFunction."""
    parts = [
        kernel.cache_key,
        specialization,
        str(sorted(options.items())),
        str(arch),
        triton.__version__,
        platform.python_version(),
        *(path.read_text(encoding="utf-8") for path in READERS),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load(folder: Path | None, key: str) -> Compiled | None:
    """What is known under ``key``, or None; a file that is not whole counts as none."""
    if folder is None:
        return None
    try:
        found = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        loop = Loop(**found.pop("loop"))
        return Compiled(**found, loop=loop)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save(folder: Path | None, key: str, one: Compiled) -> None:
    """Keep ``one`` under ``key``, if it broke no rule: what did is compiled and looked at again."""
    if folder is None or one.violations():
        return
    values = {field.name: getattr(one, field.name) for field in fields(one)}
    values["loop"] = asdict(one.loop)
    part = folder / f"{key}.{os.getpid()}.part"
    # A folder that cannot be written to costs time, and nothing else.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(values), encoding="utf-8")
        part.replace(folder / f"{key}.json")
