"""``python -m encodec_rt.web.build [FILE]``: compile the codec's C source to WebAssembly.

Needs ``ziglang`` from PyPI (a development dependency), whose version constraints.txt pins: the
committed ``codec.wasm`` is what that version compiles, byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "codec" / "codec.c"
WASM = SOURCE.with_name("codec.wasm")
FLAGS = (
    "-target", "wasm32-freestanding", "-mcpu=mvp+simd128+bulk_memory+sign_ext+nontrapping_fptoint",
    "-std=c11", "-Os", "-fno-inline-functions", "-fno-unroll-loops", "-ffp-contract=off",
    "-fno-exceptions", "-nostdlib",
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
    "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=65536",
)  # fmt: skip


def build(target: Path = WASM) -> None:
    """Compile ``codec.c`` to ``target``. Raises CalledProcessError with the compiler's words."""
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, str(SOURCE), "-o", str(target)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:2]))
