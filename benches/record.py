"""The record of a bench: one JSON file per run, with all that a reader needs to trust it.

    record = Record("stream", device="cpu")
    record.add({"model": "encodec_24khz"}, {"encode": samples_ms}, deadline_ms=13.333)
    print(record.table())
    record.write()

Files in ``benches/results/`` are committed and never edited. A new run writes a new file and adds
its headline figures to ``benches/results/index.csv``. It does so only from a clean tree, so that
the commit in the record is what ran; to any other folder a bench writes from any tree.
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

    Percentiles are by nearest rank, not interpolated, so each is a value that was measured.
    Raises ValueError if there are no samples, or one is not finite.
    """
    values = np.asarray(list(samples), dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"{values.size} samples; there must be at least one, and all must be finite"
        )
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
    """One case of a bench: its description, statistics of its timings by name, other values."""

    case: dict[str, Json]
    ms: dict[str, dict[str, Json]]
    values: dict[str, Json]


class Record:
    """One run of a bench on one device: cases, each with timings and other values."""

    def __init__(
        self,
        bench: str,
        *,
        device: str = "cpu",
        deadline_ms: float | None = None,
        folder: str | Path | None = RESULTS,
    ):
        """``folder`` is where it will be written; None for a record that is never written.

        Raises DirtyTree, before anything is measured, if that is ``benches/results`` and the tree
        has uncommitted changes.
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
        """Add a case, and return what will be written for it.

        ``timings_ms`` maps a name to samples in milliseconds; ``values`` holds anything else. With
        ``keep_samples`` all samples are written to a separate file beside the record, a line per
        case.
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
        # Concatenated gzip members are a valid gzip file, so each case is appended.
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

        It can be called again after more cases, so a run that dies keeps what it measured. Raises
        FileExistsError rather than replace another record.
        """
        path = self._open()
        unfinished = path.with_suffix(".part")
        unfinished.write_text(self._text(), encoding="utf-8")
        return unfinished.replace(path)

    def write(self) -> Path:
        """``save`` at the end of a run, and add a record in ``benches/results`` to the index.

        Raises DirtyTree if the tree changed during the run; the record is written, and says so.
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
                raise FileExistsError(f"{path.name} exists already; records are never replaced")
            self._path = path
        return self._path

    def _text(self) -> str:
        """JSON with a line per case: compact, yet a line-by-line diff is readable."""
        head = {key: value for key, value in self.as_dict().items() if key != "cases"}
        lines = [f" {json.dumps(key)}: {_compact(value)}" for key, value in head.items()]
        cases = ",\n".join(f"  {_compact(asdict(entry))}" for entry in self.cases)
        return "{\n" + ",\n".join([*lines, f' "cases": [\n{cases}\n ]']) + "\n}\n"

    def table(self, cases: Sequence[Case] | None = None) -> str:
        """A table for a terminal, a line per case and timing; of all cases by default."""
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
    """``value`` with None for non-finite floats, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [_finite(item) for item in value]
