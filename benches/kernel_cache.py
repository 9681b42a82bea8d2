"""Packs compiled kernels for a machine with a GPU, so that no time is spent compiling there.

    python tests/aot/gate.py --arch 90 --cache build/triton
    python -m benches.kernel_cache pack build/triton kernels-sm90.tar.gz
    python -m benches.kernel_cache unpack kernels-sm90.tar.gz ~/.triton/cache

Triton finds a kernel by a hash of its source, of Triton, and of the compiler; a kernel that does
not match is compiled as usual. Only the machine code and its metadata are packed. The list of a
kernel's files holds absolute paths, which are rewritten for the folder that it is unpacked into.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

SUFFIXES = {".cubin", ".json"}
GROUP = "__grp__"


def pack(cache: Path, file: Path) -> int:
    """Pack the kernels of a Triton cache folder into a tar.gz -> the number of kernels."""
    paths = sorted(path for path in cache.glob("*/*") if path.suffix in SUFFIXES)
    with tarfile.open(file, "w:gz") as archive:
        for path in paths:
            archive.add(path, f"{path.parent.name}/{path.name}")
    return sum(path.suffix == ".cubin" for path in paths)


def unpack(file: Path, cache: Path) -> int:
    """Unpack them into this machine's cache folder -> the number of kernels.

    Nothing is written outside ``cache``, existing files stay, and files of other kinds are ignored.
    Raises ValueError for a member that is not a file in a folder of its own, as every kernel is.
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
    """The list of a kernel's files, for a kernel in ``folder``."""
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
