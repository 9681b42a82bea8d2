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
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

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


def git_state(root: Path = ROOT) -> dict[str, Json]:
    """The commit that ran, and whether files differed from it.

    Results never make a tree dirty; new files elsewhere do. In an exported tree, without git, the
    commit is what the variable COMMIT says, and whether files differ is not known: None.
    """
    commit = _output(["git", "rev-parse", "HEAD"], root)
    return {
        "commit": commit or os.environ.get("COMMIT") or None,
        "dirty": None if commit is None else bool(_changes(root)),
    }


def _changes(root: Path) -> list[str]:
    """The files that differ from the commit, results aside."""
    status = ["git", "status", "--porcelain", "--", ".", ":(exclude)benches/results"]
    return [line[3:] for line in (_output(status, root, strip=False) or "").splitlines()]


class DirtyTree(SystemExit):
    """A record would name a commit that is not what ran; ends a bench with one sentence."""


def require_clean(root: Path = ROOT) -> None:
    """Raise DirtyTree if a record made now could not say which code it measured."""
    state = git_state(root)
    if state["commit"] is None:
        raise DirtyTree(
            "there is no git here to say which commit is measured; pass COMMIT=<hash>, or --out "
            "<folder> to keep the record elsewhere than benches/results"
        )
    if state["dirty"]:
        changed = _changes(root)
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DirtyTree(
            f"{', '.join(changed[:3])}{more} differ from the commit, so that a record would not "
            "say what was measured; commit first, or pass --out <folder> to keep the record "
            "elsewhere than benches/results"
        )


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


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _output(command: Sequence[str], folder: Path = ROOT, *, strip: bool = True) -> str | None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() if strip else done.stdout
