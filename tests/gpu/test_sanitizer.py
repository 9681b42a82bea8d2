"""A small run under compute-sanitizer, apart from the other tests: it is slow, and goes last."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]
LIMIT_S = 60
PROGRAM = """
import torch
from benches.workload import noise, random_24khz
from encodec_rt.streaming.codec import Codec
for tuned_for in ("throughput", "latency"):
    codec = Codec(random_24khz(), device="cuda", backend="triton", tuned_for=tuned_for)
    engine = codec.engine(3, 6.0, start="zero", graph=False)
    engine.decode(engine.encode(noise(3, 320)))
    print(tuned_for, "is done", flush=True)
"""


def test_memcheck_finds_nothing_in_a_small_run() -> None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        pytest.skip("compute-sanitizer is not here")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # The tool's child is the one that runs, and would outlive it.
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"not done in {LIMIT_S} s: {said[-1000:]}")
    assert process.returncode == 0, said[-3000:]
