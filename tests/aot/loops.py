"""The loop of a kernel that multiplies, in its machine code: what of it is products, and barriers.

Most of a kernel's time goes into one loop. The share of its instructions that multiply says how
much of the device's arithmetic it can reach, and at a barrier all warps wait for each other. Both
are counts, so that they can be held to without a GPU: ``baseline.csv`` has those of every shipped
kernel, and the gate fails where one got worse.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BASELINE = Path(__file__).parent / "baseline.csv"
COLUMNS = ("triton", "arch", "kernel", "shape", "products", "rules", "useful", "barriers")
SLACK = 0.02
"""Share of the useful instructions that another order of the same code may cost."""

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[^\n]*")
_TARGET = re.compile(r"\(?(\.L_x_\d+)")
_PRODUCT = re.compile(r"^(FFMA2?|HMMA|HGMMA|UTC[A-Z]*MMA)$")


@dataclass(frozen=True, slots=True)
class Loop:
    """Of the loop with the most products: their share of its instructions, and its barriers."""

    useful: float
    barriers: int

    def worse_than(self, before: Loop) -> list[str]:
        """In words, what got worse."""
        found = []
        # The baseline is written with as many digits.
        if round(self.useful, 3) < before.useful * (1 - SLACK):
            found.append(f"useful instructions {before.useful:.3f} -> {self.useful:.3f}")
        if self.barriers > before.barriers:
            found.append(f"barriers {before.barriers} -> {self.barriers}")
        return found


NO_LOOP = Loop(0.0, 0)
"""Of a kernel that was not looked at."""

Key = tuple[str, ...]


def main_loop(listing: str) -> Loop:
    """The loop of a kernel in nvdisasm's ``listing``; all of it where no loop multiplies."""
    code: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.match(line):
            code.append(instruction[1])
            if instruction[1] == "BRA" and (target := _TARGET.search(line, instruction.end(1))):
                # A branch to itself is what follows the end of a kernel.
                begin = labels.get(target[1], len(code))
                if begin < len(code) - 1:
                    loops.append((begin, len(code)))
    bodies = [code[begin:end] for begin, end in loops]
    body = max(bodies, key=lambda each: (_products(each), -len(each)), default=code)
    body = body if _products(body) else code
    barriers = sum(each == "BAR" for each in body)
    return Loop(_products(body) / max(1, len(body)), barriers)


def _products(code: Iterable[str]) -> int:
    return sum(bool(_PRODUCT.match(each)) for each in code)


def read(path: Path = BASELINE) -> dict[Key, Loop]:
    """The baseline, by (triton, arch, kernel, shape, products, rules)."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            tuple(row[name] for name in COLUMNS[:6]): Loop(
                float(row["useful"]), int(row["barriers"])
            )
            for row in csv.DictReader(file)
        }


def write(found: Mapping[Key, Loop], path: Path = BASELINE) -> None:
    """Replace what the baseline has of these versions and architectures."""
    kept = {(key[0], key[1]) for key in found}
    before = read(path) if path.exists() else {}
    rows = {key: loop for key, loop in before.items() if key[:2] not in kept} | dict(found)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key, loop in sorted(rows.items()):
            writer.writerow([*key, f"{loop.useful:.3f}", loop.barriers])


def worsened(found: Mapping[Key, Loop], baseline: Mapping[Key, Loop]) -> Iterator[str]:
    """Every kernel whose loop got worse, or that the baseline does not know, in words.

    Versions and architectures that the baseline has nothing of are let pass.
    """
    known = {key[:2] for key in baseline}
    for key, loop in sorted(found.items()):
        if key[:2] not in known:
            continue
        before = baseline.get(key)
        changes = ["not in the baseline"] if before is None else loop.worse_than(before)
        if changes:
            yield f"{' '.join(key)}: {'; '.join(changes)}; gate.py --baseline takes it over"
