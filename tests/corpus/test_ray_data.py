"""Ray gives the same bytes as our own processes, and a plan that does not fit is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from encodec_rt.corpus.manifest import STATE
from encodec_rt.corpus.ray_data import _fit
from encodec_rt.errors import ConfigError
from tests.corpus.conftest import write_clip

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--format", "npz", "--shard-clips", "2", "--quiet"]


def command(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "encodec_rt", "tokenize", *arguments],
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    return done.stderr


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_bytes_and_says_when_it_does_not_pay(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'encodec-rt[ray]'")
    for index in range(5):
        write_clip(tmp_path / f"in/{index}.flac", 0.5 + index / 3, seed=index, rate_hz=24_000)
    short = tmp_path_factory.mktemp("ray")  # the paths of its sockets are limited
    clips, plain, cluster = (str(tmp_path / name) for name in ("in", "plain", "cluster"))
    command(clips, "--out", plain, "-j", "1", *ARGUMENTS, folder=short)
    said = command(
        clips, "--out", cluster, "--ray", "local", "-j", "2", *ARGUMENTS[:-1], folder=short
    )
    assert "were Ray's own" in said
    files = [path for path in sorted(Path(plain).rglob("*")) if path.is_file()]
    assert len([path for path in files if path.suffix == ".npz"]) == 5
    for path in files:
        other = Path(cluster) / path.relative_to(plain)
        if path.name != "lock":
            assert other.read_bytes() == path.read_bytes(), path
    assert (Path(cluster) / STATE).is_dir()


def test_workers_never_reserve_more_than_the_cluster_has() -> None:
    said: list[str] = []
    actors, share = _fit({"CPU": 2.0}, 5, 100, "cpu", said.append)
    assert actors == 5
    assert actors * share["num_cpus"] < 2
    assert said == ["5 workers would need as many CPUs, and the cluster has 2; they share them"]
    actors, share = _fit({"CPU": 8.0, "GPU": 2.0}, None, 100, "cuda", said.append)
    assert (actors, share["num_gpus"]) == (2, 1.0)
    assert _fit({"CPU": 8.0}, None, 3, "cpu", said.append)[0] == 3
    assert len(said) == 1
    with pytest.raises(ConfigError, match="no GPU"):
        _fit({"CPU": 8.0}, None, 3, "cuda", said.append)
    with pytest.raises(ConfigError, match="needs one"):
        _fit({}, None, 3, "cpu", said.append)
