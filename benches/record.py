"""What a bench leaves behind: one JSON file per run, with all that a reader needs to trust it.

    record = Record("stream", device="cpu")
    record.add({"model": "encodec_24khz"}, {"encode": samples_ms}, deadline_ms=13.333)
    print(record.table())
    record.write()

Files under ``benches/results/`` are committed and never edited; a new run makes a new file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
PACKAGES = ("torch", "triton", "numpy", "encodec-rt", "transformers")

Scalar = str | int | float | bool | None
Json = Scalar | Sequence["Json"] | Mapping[str, "Json"]


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


def device_facts(device: str) -> dict[str, Json]:
    """Name and clocks of ``device`` ("cpu" or a CUDA device), and the CPU that drives it."""
    facts: dict[str, Json] = {
        "kind": device.split(":")[0],
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.system(),
    }
    if facts["kind"] == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        fields = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
        index = torch.device(device).index or 0
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        answer = _output([*query, f"--id={index}"])
        if answer is not None:
            facts |= dict(zip(fields, (part.strip() for part in answer.split(",")), strict=False))
    return facts


def versions() -> dict[str, Json]:
    """Python's version and those of the packages that can move a number."""
    found: dict[str, Json] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name.replace("-", "_")] = None
    if found["encodec_rt"] is None:
        from encodec_rt.version import __version__

        found["encodec_rt"] = __version__
    return found


def git_state() -> dict[str, Json]:
    """The commit that ran, and whether files differed from it; None where there is no git."""
    commit = _output(["git", "rev-parse", "HEAD"])
    changes = _output(["git", "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


@dataclass(frozen=True)
class Case:
    """One case of a bench: what was run, its timings by name, and any other values."""

    case: dict[str, Json]
    ms: dict[str, dict[str, Json]]
    values: dict[str, Json]


class Record:
    """One run of one bench on one device: cases, each with timings and plain values."""

    def __init__(self, bench: str, *, device: str = "cpu", deadline_ms: float | None = None):
        self.bench = bench
        self.deadline_ms = deadline_ms
        self.time = datetime.now(timezone.utc)
        self.device = device_facts(device)
        self.cases: list[Case] = []
        self._saved: Path | None = None

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
        """
        limit = self.deadline_ms if deadline_ms is None else deadline_ms
        timings: dict[str, dict[str, Json]] = {}
        for name, samples in (timings_ms or {}).items():
            entry = summary(samples, deadline=limit)
            if keep_samples:
                entry["samples"] = [round(float(sample), 6) for sample in samples]
            timings[name] = entry
        self.cases.append(Case(dict(case), timings, dict(values or {})))
        return self.cases[-1]

    def as_dict(self) -> dict[str, Json]:
        """The content of the JSON file."""
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "time_utc": self.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": self.device,
            "versions": versions(),
            "git": git_state(),
            "cases": [asdict(entry) for entry in self.cases],
        }

    def write(self, folder: str | Path = RESULTS) -> Path:
        """Write ``<bench>-<device>-<UTC time>.json`` into ``folder`` and return its path.

        Raises FileExistsError rather than replace an earlier record.
        """
        name = str(self.device.get("gpu") or self.device["cpu"])
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = Path(folder) / f"{self.bench}-{slug}-{self.time:%Y%m%dT%H%M%SZ}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(self._text())
        return path

    def save(self, folder: str | Path = RESULTS) -> Path:
        """As ``write``, and may be called again: the file then holds what there is by now.

        A run that dies has left what it measured. Raises FileExistsError at the first call.
        """
        if self._saved is None:
            self._saved = self.write(folder)
            return self._saved
        unfinished = self._saved.with_suffix(".part")
        unfinished.write_text(self._text(), encoding="utf-8")
        return unfinished.replace(self._saved)

    def _text(self) -> str:
        return json.dumps(_finite(self.as_dict()), indent=1) + "\n"

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


def _finite(value: Json) -> Json:
    """``value`` with non-finite floats as None, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [_finite(item) for item in value]


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
