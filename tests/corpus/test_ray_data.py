"""Ray gives the same bytes as our own processes, on loopback; a plan that does not fit is named."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from encodec_rt.corpus.ray_data import _fit
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.tokenizing import tokenize
from encodec_rt.errors import ConfigError
from tests.corpus.conftest import write_clip

ROOT = Path(__file__).parents[2]
OPTIONS = ["--format", "npz", "--shard-clips", "2", "-j", "2"]


def test_a_local_cluster_gives_the_same_bytes_on_loopback_and_says_when_it_does_not_pay(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'encodec-rt[ray]'")
    for index in range(5):
        write_clip(tmp_path / f"in/{index}.flac", 0.5 + index / 3, seed=index, rate_hz=24_000)
    size = UnitSize(clips=2)
    tokenize([tmp_path / "in"], tmp_path / "own", sink="npz", jobs=1, unit_size=size)
    arguments = ["tokenize", str(tmp_path / "in"), "--out", str(tmp_path / "ray"), "--ray", "local"]
    # The paths of its sockets may have 107 bytes, and pytest's own folders are too deep for that.
    sockets_in = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with sockets_in as sockets, (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "encodec_rt", *arguments, *OPTIONS],
            cwd=ROOT,
            # At Ray's own niceness its workers starve on a busy machine.
            env={**os.environ, "RAY_TMPDIR": sockets, "RAY_worker_niceness": "0"},
            stdout=said,
            stderr=said,
        )
        addresses: set[str] = set()
        ends = time.monotonic() + 280
        while run.poll() is None and time.monotonic() < ends:
            addresses |= listened_on(f"RAY_TMPDIR={sockets}".encode())
            time.sleep(1.0)
        run.kill()
        assert run.wait() == 0, (tmp_path / "said").read_text()
    assert "were Ray's own" in (tmp_path / "said").read_text()
    assert addresses
    assert all(each.endswith("0100007F") for each in addresses), addresses
    files = [path for path in sorted((tmp_path / "own").rglob("*")) if path.is_file()]
    assert len([path for path in files if path.suffix == ".npz"]) == 5
    for path in files:
        other = tmp_path / "ray" / path.relative_to(tmp_path / "own")
        assert path.name == "lock" or other.read_bytes() == path.read_bytes(), path


def listened_on(variable: bytes) -> set[str]:
    """The addresses, as the kernel writes them, on which processes with that variable listen."""
    listening: dict[str, str] = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                listening[f"socket:[{words[9]}]"] = words[1].partition(":")[0]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        # It may end, or be another user's.
        with suppress(OSError):
            if variable in (process / "environ").read_bytes().split(b"\0"):
                links = [os.readlink(link) for link in (process / "fd").iterdir()]
                found |= {listening[link] for link in links if link in listening}
    return found


def test_workers_never_reserve_more_than_the_cluster_has() -> None:
    said: list[str] = []
    actors, share = _fit({"CPU": 2.0}, 5, 100, "cpu", said.append)
    assert actors == 5
    assert actors * share["num_cpus"] < 2
    assert said == ["5 workers would need 5 CPUs, but the cluster has 2, so they share them"]
    actors, share = _fit({"CPU": 8.0, "GPU": 2.0}, None, 100, "cuda", said.append)
    assert (actors, share["num_gpus"]) == (2, 1.0)
    assert _fit({"CPU": 8.0}, None, 3, "cpu", said.append)[0] == 3
    assert len(said) == 1
    with pytest.raises(ConfigError, match="no GPU"):
        _fit({"CPU": 8.0}, None, 3, "cuda", said.append)
    with pytest.raises(ConfigError, match="needs one"):
        _fit({}, None, 3, "cpu", said.append)
