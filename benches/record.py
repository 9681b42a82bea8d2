"""What a bench leaves behind: one JSON file per run, with all that a reader needs to trust it.

    record = Record("stream", device="cpu")
    record.add({"model": "encodec_24khz"}, {"encode": samples_ms}, deadline_ms=13.333)
    print(record.table())
    record.write()

Files under ``benches/results/`` are committed and never edited; a new run makes a new file, and
adds its headline figures to ``benches/results/index.csv``. A record goes there only from a clean
tree, so that its commit is what ran; with ``--out`` a bench writes elsewhere, from any tree.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benches.environment import (
    ROOT,
    DirtyTree,
    Json,
    device_facts,
    git_state,
    require_clean,
    versions,
)

SCHEMA = 1
RESULTS = ROOT / "benches" / "results"
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def summary(samples: Iterable[float], *, deadline: float | None = None) -> dict[str, Json]:
    """n, mean, p50, p90, p99, p99.9 and max of ``samples``, and how many exceed ``deadline``.

    Percentiles are by nearest rank, never an interpolation, so that each was measured.
    Raises ValueError if there are no samples or one is not finite.
    """
    values = np.asarray(list(samples), dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{values.size} samples, of which all must be finite and at least one be")
    shares = np.percentile(values, PERCENTILES, method="inverted_cdf")
    result: dict[str, Json] = {"n": int(values.size), "mean": float(values.mean())}
    result |= {f"p{p:g}": float(v) for p, v in zip(PERCENTILES, shares, strict=True)}
    result["max"] = float(values.max())
    if deadline is not None:
        result["deadline"] = deadline
        result["misses"] = int((values > deadline).sum())
    return result


@dataclass(frozen=True)
class Case:
    """One case of a bench: what was run, its timings by name, and any other values."""

    case: dict[str, Json]
    ms: dict[str, dict[str, Json]]
    values: dict[str, Json]


class Record:
    """One run of one bench on one device: cases, each with timings and plain values."""

    def __init__(
        self,
        bench: str,
        *,
        device: str = "cpu",
        deadline_ms: float | None = None,
        folder: str | Path | None = RESULTS,
    ):
        """``folder`` is where it will be written; None for a record that never is.

        Raises DirtyTree, before anything is measured, if it is for ``benches/results`` and the tree
        is not clean.
        """
        self.bench = bench
        self.deadline_ms = deadline_ms
        self.folder = None if folder is None else Path(folder)
        if self._is_evidence:
            require_clean()
        self.time = datetime.now(timezone.utc)
        self.device = device_facts(device)
        self.versions = versions()
        self.git = git_state()
        self.cases: list[Case] = []
        self._path: Path | None = None

    @property
    def _is_evidence(self) -> bool:
        return self.folder is not None and self.folder.resolve() == RESULTS

    def add(
        self,
        case: Mapping[str, Json],
        timings_ms: Mapping[str, Sequence[float]] | None = None,
        *,
        values: Mapping[str, Json] | None = None,
        deadline_ms: float | None = None,
        keep_samples: bool = False,
    ) -> Case:
        """Add one case and return what will be written for it.

        ``timings_ms`` maps a name to its samples in milliseconds; ``values`` holds anything else.
        Samples that are kept go into a file of their own beside the record, one case a line.
        """
        limit = self.deadline_ms if deadline_ms is None else deadline_ms
        timings = {
            name: summary(samples, deadline=limit) for name, samples in (timings_ms or {}).items()
        }
        self.cases.append(Case(dict(case), timings, dict(values or {})))
        if keep_samples and timings_ms:
            self._keep(case, timings_ms)
        return self.cases[-1]

    def _keep(self, case: Mapping[str, Json], timings_ms: Mapping[str, Sequence[float]]) -> None:
        path = self._open().with_suffix(".samples.jsonl.gz")
        rounded = {name: [round(float(ms), 6) for ms in took] for name, took in timings_ms.items()}
        # One gzip member after the other is one gzip file, so that nothing is written twice.
        with gzip.open(path, "at", encoding="utf-8") as file:
            file.write(_compact({"case": case, "samples_ms": rounded}) + "\n")

    def as_dict(self) -> dict[str, Json]:
        """The content of the JSON file."""
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "time_utc": self.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": self.device,
            "versions": self.versions,
            "git": self.git,
            "cases": [asdict(entry) for entry in self.cases],
        }

    def save(self) -> Path:
        """Write ``<bench>-<device>-<UTC time>.json``, and return its path.

        May be called again: the file then holds what there is by now, so that a run that dies has
        left what it measured. Raises FileExistsError rather than replace another record.
        """
        path = self._open()
        unfinished = path.with_suffix(".part")
        unfinished.write_text(self._text(), encoding="utf-8")
        return unfinished.replace(path)

    def write(self) -> Path:
        """As ``save``, at the end of a run: a record of ``benches/results`` enters the index.

        Raises DirtyTree if the tree changed meanwhile; the record is then there, and says so.
        """
        changed = self._is_evidence and git_state() != self.git
        if changed:
            self.git = {**self.git, "dirty": True}
        path = self.save()
        if changed:
            raise DirtyTree(f"the tree changed during the run; delete {path.name} and run again")
        if self._is_evidence:
            from benches.index import enter

            enter([path])
        return path

    def _open(self) -> Path:
        if self._path is None:
            assert self.folder is not None, "a record without a folder is never written"
            name = str(self.device.get("gpu") or self.device["cpu"])
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            path = self.folder / f"{self.bench}-{slug}-{self.time:%Y%m%dT%H%M%SZ}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise FileExistsError(f"{path.name} is there already, and is never replaced")
            self._path = path
        return self._path

    def _text(self) -> str:
        """JSON with one line for each case, which is compact and still can be compared by lines."""
        head = {key: value for key, value in self.as_dict().items() if key != "cases"}
        lines = [f" {json.dumps(key)}: {_compact(value)}" for key, value in head.items()]
        cases = ",\n".join(f"  {_compact(asdict(entry))}" for entry in self.cases)
        return "{\n" + ",\n".join([*lines, f' "cases": [\n{cases}\n ]']) + "\n}\n"

    def table(self, cases: Sequence[Case] | None = None) -> str:
        """One aligned line per case and timing, for a terminal; of all ``cases`` if not given."""
        lines = []
        for entry in self.cases if cases is None else cases:
            label = " ".join(f"{key}={value}" for key, value in entry.case.items())
            for name, row in entry.ms.items():
                tail = f"  misses {row['misses']}" if "misses" in row else ""
                shares = "  ".join(f"{key} {row[key]:9.4f}" for key in ("p50", "p99", "p99.9"))
                head = f"{label:<60} {name:<10} n {row['n']:>6}"
                lines.append(f"{head}  {shares}  max {row['max']:9.4f} ms{tail}")
            if entry.values:
                rest = "  ".join(f"{key} {_short(value)}" for key, value in entry.values.items())
                lines.append(f"{label:<60} {rest}")
        return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _compact(value: Any) -> str:
    return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value: Json) -> Json:
    """``value`` with non-finite floats as None, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [_finite(item) for item in value]
