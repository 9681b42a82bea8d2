"""One compiled kernel, the limits it has to keep, and its line in the table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.aot.loops import NO_LOOP, Loop

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one program may have (CUDA programming guide, table 27)."""

COMPILE_LIMIT_S = 10.0
_MATRIX_OPCODE = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came out of one compilation."""

    kernel: str
    shape: str
    dot: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    opcodes: str
    seconds: float
    variants: int = 1
    waits: bool = True
    rules: str = "many"
    loop: Loop = NO_LOOP
    is_known: bool = False

    def violations(self) -> list[str]:
        """Every rule that this kernel breaks, in words."""
        found = []
        if self.spilled_bytes:
            found.append(f"{self.spilled_bytes} bytes of registers spilled")
        if self.shared_bytes > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared_bytes} bytes shared, {SHARED_LIMIT[self.arch]} allowed")
        matrix = _MATRIX_OPCODE.search(self.opcodes)
        if self.dot == "ieee" and (matrix or "FFMA" not in self.opcodes):
            found.append(f"float32 products as {self.opcodes}, not FFMA")
        if self.dot == "tf32" and not matrix:
            found.append(f"TF32 products as {self.opcodes}, not a tensor core's")
        if self.seconds > COMPILE_LIMIT_S:
            found.append(f"{self.seconds:.1f} CPU s to compile, {COMPILE_LIMIT_S:g} allowed")
        if not self.waits:
            found.append("chained, and does not wait for the launch before it")
        if self.variants > 1:
            found.append(f"{self.variants} binaries, where slots must not make a difference")
        return found

    def row(self) -> str:
        """One line of the table."""
        return (
            f"| {self.kernel} | {self.shape} | {self.dot} | {self.arch} | {self.registers} | "
            f"{self.spilled_bytes} | {self.shared_bytes} | {self.opcodes} | "
            f"{self.loop.useful:.2f} | {self.loop.barriers} | {self.seconds:.1f} |"
        )


HEADER = (
    "| kernel | shape | products | sm | registers | spilled | shared | opcodes | useful | barriers "
    "| s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
