"""Compiled kernels that travel to a machine with a GPU, so that its first minute compiles nothing.

    python tests/aot/gate.py --arch 90 --cache build/triton
    python -m benches.kernel_cache pack build/triton kernels-sm90.tar.gz
    python -m benches.kernel_cache unpack kernels-sm90.tar.gz ~/.triton/cache

Triton finds a kernel by a hash of its source, itself, and the compiler: what does not match
there is compiled as ever. Only the machine code and its description travel; the lists of a kernel's
files hold absolute paths, which are rewritten for the folder that they are unpacked into.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

SUFFIXES = {".cubin", ".json"}
GROUP = "__grp__"


def pack(cache: Path, file: Path) -> int:
    """Pack the kernels of a Triton cache folder into a tar.gz; returns how many there are."""
    paths = sorted(path for path in cache.glob("*/*") if path.suffix in SUFFIXES)
    with tarfile.open(file, "w:gz") as archive:
        for path in paths:
            archive.add(path, f"{path.parent.name}/{path.name}")
    return sum(path.suffix == ".cubin" for path in paths)


def unpack(file: Path, cache: Path) -> int:
    """Unpack them into the cache folder of this machine; returns how many there are.

    Nothing is unpacked outside ``cache``, and what is there already stays.
    """
    kernels = 0
    with tarfile.open(file) as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")
            content = archive.extractfile(member)
            if (
                content is None
                or Path(name).name != name
                or Path(folder).name != folder
                or folder == ".."
            ):
                raise ValueError(f"{member.name} is not the file of a kernel")
            target = cache / folder / name
            if target.suffix not in SUFFIXES or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            data = content.read()
            target.write_bytes(_moved(data, target.parent) if GROUP in name else data)
            kernels += target.suffix == ".cubin"
    return kernels


def _moved(group: bytes, folder: Path) -> bytes:
    """A list of a kernel's files, as it has to be for a kernel in ``folder``."""
    listed = json.loads(group)
    names = listed["child_paths"]
    listed["child_paths"] = {name: str(folder / Path(path).name) for name, path in names.items()}
    return json.dumps(listed).encode()


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    work = pack if options.what == "pack" else unpack
    print(f"{work(options.source, options.target)} kernels in {options.target}")


if __name__ == "__main__":
    main()
