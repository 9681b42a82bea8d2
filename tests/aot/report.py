"""What the gate says of the kernels it looked at, and whether it lets them pass."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.aot.compiled import HEADER, Compiled
from tests.aot.loops import Key, Loop, worsened
from tests.aot.loops import read as read_baseline
from tests.aot.loops import write as write_baseline

BASELINE_ARCH = 90
"""Of which the loops are held to a baseline."""

UNHELD = ("commit", "sum", "rvq_decode", "rvq_choose")
"""Kernels that multiply nothing."""


def report(found: Sequence[Compiled], triton: str, seconds: float, *, write: bool) -> int:
    """Print the table of ``found``; 1 if one breaks a rule or its loop has got worse.

    ``write`` makes the loops of now the baseline.
    """
    found = sorted(found, key=lambda one: (one.kernel, one.dot, one.shape, one.arch))
    bad = [(one, broken) for one in found if (broken := one.violations())]
    print(HEADER, *(one.row() for one in found), sep="\n")
    worse = hold_to_baseline(found, triton, write=write)
    known = sum(one.is_known for one in found)
    print(
        f"\ntriton {triton}: {len(found)} kernels for sm {sorted({one.arch for one in found})} in "
        f"{seconds:.0f} s, {known} of them known from before, {len(bad)} in violation"
    )
    for one, broken in bad:
        where = f"{one.kernel} {one.shape} {one.dot} sm_{one.arch}"
        print(f"{where}: {'; '.join(broken)}", file=sys.stderr)
    for line in worse:
        print(line, file=sys.stderr)
    return min(len(bad) + len(worse), 1)


def hold_to_baseline(found: Sequence[Compiled], triton: str, *, write: bool) -> list[str]:
    """What got worse; ``write`` makes what there is now the baseline."""
    # Rules are told apart by chained launches, which only these architectures have.
    loops: dict[Key, Loop] = {}
    for one in found:
        if one.arch == BASELINE_ARCH and one.kernel not in UNHELD:
            key = (triton, str(one.arch), one.kernel, one.shape, one.dot, one.rules)
            # A kernel may have variants by a constant that is not one of its sizes: the worst.
            loops[key] = min(loops.get(key, one.loop), one.loop, key=lambda each: each.useful)
    if write:
        write_baseline(loops)
        return []
    return list(worsened(loops, read_baseline()))
