"""What a measurement depends on: the machine, the packages, and the commit that ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "numpy", "encodec-rt", "transformers")

Scalar = str | int | float | bool | None
Json = Scalar | Sequence["Json"] | Mapping[str, "Json"]


def device_facts(device: str) -> dict[str, Json]:
    """Facts about the CPU and its load and, for a CUDA ``device``, the GPU's name and clocks."""
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
    """The versions of Python and of the packages that may affect results."""
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
    """The commit that ran, and whether the tree differed from it ("dirty").

    Files in benches/results are ignored, untracked files elsewhere are not. The environment
    variable COMMIT, where it is set, says what an exported tree is of, and "dirty" is None: a copy
    may also lie in some other repository.
    """
    if stated := os.environ.get("COMMIT"):
        return {"commit": stated, "dirty": None}
    commit = _output(["git", "rev-parse", "HEAD"], root)
    return {"commit": commit, "dirty": None if commit is None else bool(_changes(root))}


def _changes(root: Path) -> list[str]:
    """The files that differ from the commit, except for results."""
    status = ["git", "status", "--porcelain", "--", ".", ":(exclude)benches/results"]
    return [line[3:] for line in (_output(status, root, strip=False) or "").splitlines()]


def memory_mib(field: str = "VmRSS", process: int | str = "self") -> float:
    """Resident memory of a process in MiB, or its peak if ``field`` is "VmHWM" (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


class DirtyTree(SystemExit):
    """A record would name a commit other than what ran; ends the bench with one sentence."""


def require_clean(root: Path = ROOT) -> None:
    """Raise DirtyTree if a record made now could not say which code it measured."""
    state = git_state(root)
    if state["commit"] is None:
        raise DirtyTree(
            "git does not say which commit is measured; set COMMIT=<hash>, or pass --out <folder> "
            "to write the record outside benches/results"
        )
    if state["dirty"]:
        changed = _changes(root)
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DirtyTree(
            f"{', '.join(changed[:3])}{more} differ from the commit, so a record would not say "
            "what was measured; commit first, or pass --out <folder> to write the record outside "
            "benches/results"
        )


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
