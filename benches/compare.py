"""What changed between two records of the same bench.

    python -m benches.compare A B [--over 5] [--all]

A and B are files, or names in benches/results, with or without .json. If A is "last", it is the
newest earlier record of B's bench and device. There is a line per figure that both records have:
before, after, and the change. Cases are paired if their descriptions are equal.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.index import figures_of
from benches.record import RESULTS

TIMING_STATISTICS = ("p50", "p99", "p99.9", "misses")
"""The statistics of a timing that are compared; the others come from the same samples."""


@dataclass(frozen=True)
class Move:
    """One figure of one case, in both records."""

    case: str
    figure: str
    before: float
    after: float

    @property
    def percent(self) -> float:
        """The change in percent of ``before``; infinite if that is 0."""
        if self.after == self.before:
            return 0.0
        return 100 * (self.after - self.before) / abs(self.before) if self.before else math.inf

    def line(self) -> str:
        """One line of the table."""
        change = f"{self.percent:+8.1f} %" if math.isfinite(self.percent) else "   from 0"
        return f"{self.before:12.5g} {self.after:12.5g} {change}  {self.figure}  [{self.case}]"


def find(name: str, results: Path = RESULTS) -> Path:
    """The file of a record. Raises FileNotFoundError."""
    for path in (Path(name), results / name, results / f"{name}.json"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}: not a file, and not a record in {results}")


def last_before(path: Path, results: Path = RESULTS) -> Path:
    """The newest earlier record of the same bench and device. Raises FileNotFoundError."""
    kind, _, time = path.stem.rpartition("-")
    earlier = [each for each in results.glob(f"{kind}-*.json") if each.stem < path.stem]
    earlier = [each for each in earlier if each.stem.rpartition("-")[0] == kind]
    if not earlier:
        raise FileNotFoundError(f"no record of {kind} before {time}")
    return max(earlier)


def _cases(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each case's description and figures; equal descriptions are numbered in order."""
    seen: Counter[str] = Counter()
    for case in record["cases"]:
        label = " ".join(f"{key}={value}" for key, value in case["case"].items())
        seen[label] += 1
        label += f" ({seen[label]})" if seen[label] > 1 else ""
        statistics = {f"{name} {each}" for name in case["ms"] for each in TIMING_STATISTICS}
        figures = figures_of(case).items()
        yield (
            label,
            {name: v for name, v in figures if name in statistics or name in case["values"]},
        )


def moves(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Move], list[str]]:
    """Every figure that both records have, and the cases that only one has.

    Raises ValueError if the records are of different benches.
    """
    if before["bench"] != after["bench"]:
        raise ValueError(f"{before['bench']} and {after['bench']} are different benches")
    old, new = dict(_cases(before)), dict(_cases(after))
    found = [
        Move(label, figure, old[label][figure], value)
        for label, figures in new.items()
        for figure, value in figures.items()
        if figure in old.get(label, {})
    ]
    return found, sorted(old.keys() ^ new.keys())


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What else differs between the runs, in words; it may make times incomparable."""
    found = []
    for part in ("device", "versions"):
        for key in before[part].keys() | after[part].keys():
            pair = before[part].get(key), after[part].get(key)
            if pair[0] != pair[1]:
                found.append(f"{key}: {pair[0]} -> {pair[1]}")
    for name, record in (("before", before), ("after", after)):
        if record["git"]["dirty"]:
            found.append(f"{name}: the tree had uncommitted changes, so the commit is not what ran")
    return sorted(found)


def main(arguments: list[str] | None = None) -> int:
    """Print what changed; 2 if the records cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("before", help='a record, or "last"')
    parser.add_argument("after")
    parser.add_argument(
        "--over", type=float, default=5.0, help="show changes above this many percent"
    )
    parser.add_argument("--all", action="store_true", help="show unchanged figures too")
    options = parser.parse_args(arguments)
    try:
        new = find(options.after)
        old = last_before(new) if options.before == "last" else find(options.before)
        before, after = (json.loads(path.read_text("utf-8")) for path in (old, new))
        found, single = moves(before, after)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{before['bench']}: {old.name} ({before['git']['commit']})")
    print(f"{'':{len(before['bench'])}}  {new.name} ({after['git']['commit']})")
    for difference in differences(before, after):
        print(f"  {difference}")
    shown = [move for move in found if options.all or abs(move.percent) > options.over]
    for move in sorted(shown, key=lambda move: -abs(move.percent)):
        print(move.line())
    print(f"{len(found)} figures in both, {len(shown)} shown (over {options.over:g} %)")
    for label in single:
        print(f"only in one: [{label}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
