"""The history of headline figures: one growing table with two or three of each run.

    python -m benches.index    # adds records that came from another machine

``benches/results/index.csv`` has a line per figure: date, commit, whether the tree was clean,
device, bench, record, case, figure, value. A line stays when its record is deleted. Cases that
differ only in something that the table does not show, such as a seed, share a line with their
median.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = Path(__file__).parent / "results" / "index.csv"
COLUMNS = ("date", "commit", "tree", "device", "bench", "record", "case", "figure", "value")


@dataclass(frozen=True)
class Headline:
    """The ``figures`` of a bench that are shown, for each combination of the case keys in ``by``.

    A figure is the name of a value, or of a timing and its statistic, such as "encode p50".
    """

    figures: tuple[str, ...]
    by: tuple[str, ...] = ()


WALL = ("encode wall p50", "decode wall p50", "decode wall p99")
HEADLINES = {
    "cpu-live": Headline(("cpu p50", "cpu p99", "cpu over products"), ("direction",)),
    "cpu-files": Headline(
        ("blocks times real time", "blocks over the faster of the others", "blocks peak_mib"),
        ("what", "direction", "seconds"),
    ),
    "cpu-paced": Headline(("encode p99", "frames_late", "late_max_ms"), ("real_time",)),
    "cpu-slots": Headline(("both p50", "streams by p50"), ("slots", "threads")),
    "cpu-startup": Headline(("load to first frame p50",), ("model",)),
    "stream": Headline(("both p50", "both p99.9", "frames_late"), ("model", "backend", "paced")),
    "numerics": Headline(("codes_that_differ", "decoder_bfloat16_snr_db"), ("model", "backend")),
    "corpus": Headline(
        (
            "queue times real time",
            "over transformers one by one",
            "over transformers padded",
            "queue frames that differ",
            "two over one",
            "peak_mib",
            "other bytes",
            "ray over own",
        ),
        ("what", "corpus", "format"),
    ),
    "quality": Headline(("pesq_wb", "zimtohrli", "visqol"), ("kind", "codec", "kbps")),
    "lm": Headline(
        (
            *(f"kbps of {books} codebooks" for books in (2, 4, 8, 16)),
            "encode_x_real_time",
            "decode_x_real_time",
            "encode p99",
            "decode p99",
            "frame p99",
        ),
        ("coding", "restart_s", "live --save", "files", "at"),
    ),
    "link": Headline(
        ("network_pesq_wb", "concealed_share", "sum_without_computing_ms", "full_rate_after_s"),
        ("condition", "defence"),
    ),
    "link-call": Headline(("concealed_share", "jitter_buffer_ms", "resident_mib"), ("end",)),
    "link-hour": Headline(("delay_p50_ms", "concealed_share", "resident_mib")),
    "link-hostile": Headline(("concealed_share", "jitter_buffer_ms"), ("call",)),
    "link-jitter": Headline(("late_percent", "mean_ms"), ("network", "buffer")),
    "link-conditions": Headline(
        ("delay_more_than_the_path_ms", "longest_gap_ms", "concealed_share"), ("condition",)
    ),
    "link-rig": Headline(("network_pesq_wb", "delay_p50_ms", "concealed_share"), ("condition",)),
    "web-call": Headline(
        ("packets received", "lost frames", "skipped frames", "ready_ms", "without devices_ms"),
        ("page",),
    ),
    "gpu-smoke": Headline((*WALL, "codes_differ"), ("row",)),
    "gpu-latency": Headline(
        (*WALL, "encode device p50", "decode device p50"), ("row", "paced", "cold")
    ),
    "gpu-rivals": Headline(WALL, ("row", "paced", "cold")),
    "gpu-profile": Headline(("launches", "replay_us"), ("row", "slots", "profile")),
    "gpu-variants": Headline(("encode device p50", "decode device p50"), ("rules", "variant")),
    "gpu-flips": Headline(("frames_that_differ", "codes_that_differ"), ("row",)),
    "gpu-streams": Headline(("streams", "tick p99.9"), ("row", "paced")),
    "kernels": Headline(("percent_of_floor",), ("rules", "slots", "precision")),
}
"""For a bench that is not listed: the first three medians, or numbers, of every case."""


def figures_of(case: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a case by name: "encode p50" of a timing, and plain values."""
    found = {
        f"{timing} {statistic}": float(value)
        for timing, row in case["ms"].items()
        for statistic, value in row.items()
        if isinstance(value, int | float)
    }
    values = case["values"].items()
    return found | {name: float(v) for name, v in values if isinstance(v, int | float)}


def rows_of(record: Mapping[str, Any], name: str) -> Iterator[dict[str, str]]:
    """The index lines for ``record``, whose file is ``name``.json."""
    headline = HEADLINES.get(record["bench"])
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for case in record["cases"]:
        found = figures_of(case)
        keys = case["case"] if headline is None else headline.by
        label = " ".join(f"{key}={case['case'][key]}" for key in keys if key in case["case"])
        medians = [each for each in found if "p50" in each]
        wanted = headline.figures if headline else (medians or list(found))[:3]
        for figure in wanted:
            if figure in found:
                groups[label, figure].append(found[figure])
    device = record["device"]
    dirty = record["git"]["dirty"]
    for (label, figure), values in groups.items():
        yield {
            "date": record["time_utc"],
            "commit": str(record["git"]["commit"])[:12],
            "tree": "unknown" if dirty is None else "dirty" if dirty else "clean",
            "device": str(device.get("gpu") or device["cpu"]),
            "bench": record["bench"],
            "record": name,
            "case": label,
            "figure": figure,
            "value": f"{statistics.median(values):.6g}",
        }


def entered(index: Path) -> list[dict[str, str]]:
    """The lines that are in the index."""
    if not index.exists():
        return []
    with index.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def enter(records: Iterable[Path], index: Path | None = None) -> Sequence[str]:
    """Add the records that the index lacks, sorted by time -> their names."""
    index = INDEX if index is None else index
    lines = entered(index)
    known = {line["record"] for line in lines}
    new = {path.stem: json.loads(path.read_text("utf-8")) for path in records}
    new = {name: record for name, record in new.items() if name not in known}
    for name, record in new.items():
        lines += rows_of(record, name)
    lines.sort(key=lambda line: (line["date"], line["record"]))
    with index.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return sorted(new)


def main() -> None:
    """Add every record in benches/results that the index lacks."""
    print("\n".join(enter(sorted(INDEX.parent.glob("*.json")))) or "nothing new")


if __name__ == "__main__":
    main()
