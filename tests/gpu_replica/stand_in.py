"""Runs a part of `make gpu` with the CPU in the GPU's place: every path, and no time that counts.

    python stand_in.py -m benches.gpu latency --budget 6 --out DIR

The model has a few thousand parameters, and plain torch computes it in the place of the kernels,
whose tests run in Triton's interpreter: the few of them for which there is time.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch


class Event:
    """Of ``torch.cuda``, by the clock of the host."""

    def __init__(self, enable_timing: bool) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


def stand_in(module: Any) -> None:
    """Put small things in the place of large ones, and the host in that of the device."""
    from benches import kernels, profile, rows, streams, workload
    from encodec_rt.streaming.backends.select import select
    from encodec_rt.streaming.cuda_graph import capture_graph
    from tests.support.models import tiny_config

    torch.set_num_threads(1)
    cuda: Any = torch.cuda
    cuda.Event, cuda.synchronize = Event, lambda *_: None
    captures = [importlib.import_module("encodec_rt.streaming.cuda_graph"), kernels, module]
    for each in captures:
        if hasattr(each, "capture"):
            each.capture = lambda device, *runs: runs
    plain = replace(select("torch", torch.device("cpu")), capture=capture_graph)
    for each in (rows, module):
        for name in ("triton_ops", "select"):
            if hasattr(each, name):
                setattr(each, name, lambda *_, **__: plain)
    # setattr, since what takes the place of a class is none.
    setattr(workload, "EncodecConfig", tiny_config)  # noqa: B010
    small = workload.random_24khz()
    changes: dict[str, Any] = {
        "require_cuda": lambda: torch.device("cpu"),
        "ieee_products": lambda: None,
        "random_24khz": lambda: small,
        "trained": lambda: small,
        "speech": lambda slots: workload.noise(slots, 4 * small.config.hop_length),
        "ceilings": lambda device: {"bytes": 1e9, "exact": 1e9, "fast": 1e9},
        "FLUSH_BYTES": 64,
        "CHECKED_FRAMES": 4,
        "REPLAYS": 2,
        "PER_GRAPH": 1,
        "PROFILED_STREAMS": 3,
    }
    for each in (module, profile):
        for name, value in changes.items():
            if hasattr(each, name):
                setattr(each, name, value)
    profile.timeline = lambda replay, device: [("kernel", 1.0, 1.0)]
    streams.CHECKED_STREAMS = 2
    streams.sizes = lambda: [1, 2, 3]
    if hasattr(module, "VARIANTS"):
        # Of each rule one; what a process of its own runs is this file again, and then that.
        module.VARIANTS = tuple(each for each in module.VARIANTS if each.name in TRIED)
        module.try_out, module.try_out_here = try_out_variant, module.try_out
        module.FRAMES, module.WALL_FRAMES = 2, 2
        module.SLOTS, module.REPLAYS = {"few": 1, "many": 2}, {"few": 2, "many": 2}


TRIED = ("rules", "one row whole", "choose, 4 warps")


def try_out_variant(index: int, folder: str) -> None:
    """One variant of benches.variants, in its own process, with the stand-ins in place."""
    module: Any = importlib.import_module("benches.variants")
    stand_in(module)
    module.try_out_here(index, folder)


def main() -> int:
    """Run ``-m module arguments``."""
    _, name, *arguments = sys.argv[1:]
    if name == "pytest":
        import pytest

        slow = {"tests/kernels/test_conv.py", "tests/kernels/test_rvq.py"}
        return int(pytest.main([each for each in arguments if each not in slow] + ["-n", "0"]))
    module = importlib.import_module(name)
    stand_in(module)
    sys.argv = [name, *arguments]
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
