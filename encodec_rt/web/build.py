"""``python -m encodec_rt.web.build [FILE]``: compile the codec's C source to WebAssembly.

Needs ``ziglang`` from PyPI (a development dependency), whose version constraints.txt pins: the
committed ``codec.wasm`` is what that version compiles, byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "codec" / "codec.c"
WASM = SOURCE.with_name("codec.wasm")
COMPILER_FLAGS = (
    "-target", "wasm32-freestanding", "-mcpu=mvp+simd128+bulk_memory+sign_ext+nontrapping_fptoint",
    "-std=c11", "-Os", "-Xclang", "-Oz", "-fno-inline-functions", "-fno-unroll-loops",
    "-ffp-contract=off", "-fno-exceptions", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
)  # fmt: skip
"""``zig cc`` treats -Oz as -Os, and without either compiles for debugging."""
# Without --compress-relocations each index and address takes five bytes; `zig cc` lacks the option.
# The data follows the stack, so a small stack keeps the addresses in the code short. It is all that
# these functions need; an overflow would trap.
LINKER_FLAGS = ("--no-entry", "--strip-all", "--compress-relocations", "-z", "stack-size=4096")


def build(target: Path = WASM) -> None:
    """Compile ``codec.c`` to ``target``; raises CalledProcessError after the compiler's message."""
    zig = [sys.executable, "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as folder:
        compiled = str(Path(folder) / "codec.o")
        subprocess.run([*zig, "cc", *COMPILER_FLAGS, "-c", str(SOURCE), "-o", compiled], check=True)
        subprocess.run([*zig, "wasm-ld", *LINKER_FLAGS, compiled, "-o", str(target)], check=True)
    target.chmod(0o644)  # the linker makes it executable


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:2]))
