"""The headline figures of a GPU session, as a short table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benches.index import figures_of

MAX_SKIPPED = 6
"""Most rows of a record that are listed as not timed; of the rest only the number is given."""


def records(out: Path) -> list[dict[str, Any]]:
    """The records in a folder, oldest first; truncated ones are left out."""
    found = []
    for path in sorted(out.glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except ValueError:
            print(f"{path.name} is truncated")
    return found


def tests_line(path: Path) -> str:
    """The counts of a JUnit file, and the names of failed tests."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return f"{path.stem}: no junit file"
    suite = root if root.tag == "testsuite" else root[0]
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if len(case.findall("failure"))]
    names = "".join(f"\n  failed: {name}" for name in failed[:8])
    return f"{path.stem}: {', '.join(f'{value} {name}' for name, value in count.items())}{names}"


def summary(out: Path) -> Iterator[str]:
    """The headline figures of all records in ``out``, one line each."""
    for path in sorted(out.glob("*.xml")):
        yield tests_line(path)
    for record in records(out):
        yield f"{record['bench']}, {record['device'].get('gpu') or record['device']['cpu']}"
        yield from _one_stream(record)
        skipped = [case for case in record["cases"] if "skipped" in case["case"]]
        for case in skipped[:MAX_SKIPPED]:
            reason = str(case["values"].get("reason"))[:90]
            yield f"  not timed: {case['case']['skipped']}: {reason}"
        if skipped[MAX_SKIPPED:]:
            yield f"  and {len(skipped) - MAX_SKIPPED} more not timed"
        for case in record["cases"]:
            what, values = case["case"], case["values"]
            if values.get("wrong"):
                yield f"  WRONG: {what}: {str(values.get('reason'))[:90]}"
            elif "streams" in values and (what["paced"] or values["kept"]):
                pace = "paced" if what["paced"] else "flat out"
                tick = case["ms"]["tick"]
                kept = "kept" if values["kept"] else "LATE"
                yield (
                    f"  {what['row']}: {what['slots']} slots {pace} {kept}, tick p50 "
                    f"{tick['p50']:.2f} p99.9 {tick['p99.9']:.2f} ms"
                )
            elif "frames_that_differ" in values:
                yield (
                    f"  {what['row']}: {100 * values['frames_that_differ']:.3f} % of "
                    f"{values['frames']} frames of speech have other codes"
                )
            elif "launches" in values:
                yield (
                    f"  {what['row']} S={what['slots']} {what['profile']}: {values['launches']} "
                    f"launches in {values['replay_us']:.1f} us"
                )
            elif "variant" in what and case["ms"]:
                yield "  " + _variant(case)
        yield from _layers(record)


def _variant(case: Mapping[str, Any]) -> str:
    """Median microseconds of a variant, encode / decode."""
    what, shown = case["case"], []
    for kind in ("device", "wall"):
        names = [f"{way} {kind}" for way in ("encode", "decode")]
        if all(name in case["ms"] for name in names):
            times = "/".join(f"{1e3 * case['ms'][name]['p50']:.1f}" for name in names)
            shown.append(f"{kind} {times}")
    return f"{what['rules']}, {what['variant']}: {', '.join(shown)} us"


def _one_stream(record: Mapping[str, Any]) -> Iterator[str]:
    """Microseconds of a frame by row, in device and wall time, and the speed-up over torch."""
    found: dict[str, dict[str, float]] = {}
    for case in record["cases"]:
        what = case["case"]
        if what.get("slots") == 1 and "row" in what and case["ms"]:
            kind = "paced " if what.get("paced") else "cold " if what.get("cold") else ""
            figures = {f"{kind}{name}": v for name, v in figures_of(case).items()}
            row = found.setdefault(what["row"], {})
            row |= {name: min(v, row.get(name, v)) for name, v in figures.items()}
    base = found.get("torch, graph", {}).get("encode wall p50")
    columns = [
        f"{kind}{way} {where} {share}"
        for kind, where, share in (
            ("", "device", "p50"),
            ("", "wall", "p50"),
            ("", "wall", "p99"),
            ("paced ", "wall", "p50"),
            ("paced ", "wall", "p99"),
            ("cold ", "wall", "p50"),
        )
        for way in ("encode", "decode")
    ]
    if found:
        yield "  us encode/decode: device p50, wall p50 p99, paced p50 p99, cold p50; x torch graph"
    for name, figures in found.items():
        cells = [f"{1e3 * figures[key]:.0f}" if key in figures else "-" for key in columns]
        pairs = " ".join("/".join(pair) for pair in zip(cells[::2], cells[1::2], strict=True))
        ours = figures.get("encode wall p50")
        ratio = f" x{base / ours:.2f}" if base and ours else ""
        yield f"  {name}: {pairs}{ratio}"


def _layers(record: Mapping[str, Any]) -> Iterator[str]:
    """Sums over the layers that ``benches.kernels`` timed."""
    sums: dict[str, list[float]] = {}
    for case in record["cases"]:
        what = case["case"]
        if "layer" in what and case["ms"]:
            key = f"{what['rules']} {what['precision']} S={what['slots']} {what['layer'][:7]}"
            both = 1e3 * case["ms"]["device"]["p50"], case["values"]["floor_us"]
            sums.setdefault(key, []).append(both[0])
            sums.setdefault(f"{key} floor", []).append(both[1])
    for key in (key for key in sums if not key.endswith("floor")):
        floor = sum(sums[f"{key} floor"])
        yield f"  {key}: {len(sums[key])} layers {sum(sums[key]):.1f} us, floor {floor:.1f} us"
