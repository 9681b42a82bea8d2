"""The benches that need a GPU: what can be shown without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import checks, gpu, kernels, pace, streams, timing
from benches.checks import NotRight
from benches.environment import ROOT
from benches.kernels import Work, require_right, work
from benches.record import Record
from benches.rows import FLIPS, LATENCY, RIVALS, CompiledSteps, Row, torch_engine, triton_engine
from benches.workload import OneLayer, frames, inputs_of, layers, noise, steps_per_frame
from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.cuda_graph import capture_graph
from encodec_rt.streaming.ops import Step
from encodec_rt.streaming.plan import ResBlockSpec
from tests.support.models import random_model, tiny_config
from tests.support.tolerances import bound

CPU = torch.device("cpu")
ABSENT = {
    "aiortc",
    "av",
    "encodec",
    "huggingface_hub",
    "hypothesis",
    "matplotlib",
    "rich",
    "sounddevice",
    "soundfile",
    "soxr",
    "transformers",
    "typer",
}
"""Packages of the project that a machine for ``make gpu`` need not have."""
gpu_limits = gpu.GpuLimits


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("bench", [gpu, kernels])
def test_bench_refuses_a_machine_without_a_gpu(
    bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "latency"] if bench is gpu else ["bench"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main()  # type: ignore[attr-defined]


def test_the_products_of_a_frame_are_those_of_the_paper_model() -> None:
    model = EncodecModel(EncodecConfig()).to("meta")
    products = {"encoder": 0, "decoder": 0}
    for spec in layers(model):
        products[spec.name.split(".")[0]] += work(spec, steps_per_frame(model, spec)).products
    # Counted by hand from kernel sizes, strides and channels; both directions mirror each other.
    assert products == {"encoder": 19_863_552, "decoder": 19_863_552}


def test_the_work_of_a_residual_block() -> None:
    spec = ResBlockSpec("encoder.layers.1", 32, 16, 3, 1, True)
    found = work(spec, 320)
    assert found.products == 491_520 + 163_840 + 327_680
    assert found.weight_bytes == 4 * (32 * 16 * 3 + 16 * 32 + 32 * 32)
    assert found.slot_bytes == 4 * (2 * 320 * 32 + 2 * 2 * 32)


def test_a_floor_is_the_longer_of_moving_and_multiplying() -> None:
    need = Work(products=1000, weight_bytes=400, slot_bytes=100)
    assert need.floor_us(2, bytes_per_s=1e6, products_per_s=1e9) == pytest.approx(600)
    assert need.floor_us(2, bytes_per_s=1e9, products_per_s=1e6) == pytest.approx(2000)


def test_a_layer_that_is_right_may_be_timed_and_no_other() -> None:
    model = random_model(tiny_config(pad_mode="constant"))
    spec = layers(model)[1]
    one = OneLayer(model, spec, TORCH, 2, CPU)
    assert one.x.shape == (2, steps_per_frame(model, spec), inputs_of(spec))
    assert require_right(one, "exact") < 1e-6
    weight = one.net.packed[spec.name][0]
    weight += 1e-3
    with pytest.raises(NotRight, match=r"encoder\.layers\.1: error .* is not timed"):
        require_right(one, "exact")


def test_the_bench_is_as_strict_as_the_tests() -> None:
    for precision, dtype in (("exact", "float32"), ("fast", "tf32")):
        bounds = [bound(op, dtype) for op in ("conv1d", "conv_transpose1d", "resblock", "lstm")]
        assert max(bounds) == kernels.LARGEST_ERROR[precision]


def test_a_row_with_other_codes_is_not_timed() -> None:
    codes = torch.arange(24).reshape(2, 3, 4)
    other = codes.clone()
    assert checks.require_same_codes(codes, codes, "exact") == 0
    other[0, 0, 3] = 99
    assert checks.require_same_codes(other, codes, "exact") == pytest.approx(1 / 6)
    other[1, 0, 3] = 99
    with pytest.raises(NotRight, match=r"33\.33 % of the frames have other codes"):
        checks.require_same_codes(other, codes, "exact")
    assert checks.require_same_codes(other, codes, "fast") == pytest.approx(1 / 3)


def test_what_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="not finished within its 0 s"), timing.time_limit(0.05):
        time.sleep(60)
    assert issubclass(TimeoutError, checks.FAILURES)


class FakeEvent:
    """Of ``torch.cuda``, on a machine that has no such thing."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.time - self.time)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.device:
    """The CPU in the place of a GPU: every path of the benches, and no time that means anything."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr("encodec_rt.streaming.cuda_graph.capture", lambda device, *runs: runs)
    monkeypatch.setattr("encodec_rt.streaming.backends.triton.capture_eagerly", capture_graph)
    monkeypatch.setattr("benches.kernels.capture", lambda device, *runs: runs)
    for bench in (gpu, kernels):
        monkeypatch.setattr(bench, "require_cuda", lambda: CPU)
        monkeypatch.setattr(bench, "ieee_products", lambda: None)
        monkeypatch.setattr(bench, "random_24khz", small_model)
    monkeypatch.setattr(gpu, "FLUSH_BYTES", 64)
    monkeypatch.setattr(gpu, "CHECKED_FRAMES", 3)
    monkeypatch.setattr(gpu, "trained", small_model)
    monkeypatch.setattr(streams, "CHECKED_STREAMS", 2)
    return CPU


def small_model() -> EncodecModel:
    return random_model(tiny_config(pad_mode="constant"))


def ran(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The cases of the one record that ``bench`` leaves."""
    monkeypatch.setattr("sys.argv", ["bench", *arguments, "--out", str(tmp_path)])
    assert bench.main() == 0
    (path,) = tmp_path.glob("*.json")
    return json.loads(path.read_text())["cases"]


def test_noise_is_cut_into_frames() -> None:
    audio = noise(2, 3 * 320)
    assert torch.equal(torch.cat(frames(audio), 1), audio)
    assert torch.equal(audio, noise(2, 3 * 320))
    assert audio.abs().max() > 0.01


def broken(model: EncodecModel, slots: int, device: torch.device) -> Any:
    raise RuntimeError("the device refuses")


def test_latency_is_measured_of_what_is_right_and_the_rest_is_excused(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        Row("triton, few slots", partial(triton_engine, few=True, chained=True), live=True),
        Row("torch, eager", partial(torch_engine, graph=False)),
        Row("broken", broken),
    )
    monkeypatch.setattr(gpu, "LATENCY", rows)
    monkeypatch.setattr(
        gpu, "GpuLimits", lambda: gpu_limits(row_s=1e4, frames=2, live_frames=1, device_frames=2)
    )
    cases = ran(gpu, tmp_path, monkeypatch, "latency", "--budget", "1e4")
    (skipped,) = (case for case in cases if "skipped" in case["case"])
    assert skipped["values"] == {"reason": "RuntimeError: the device refuses", "wrong": False}
    timed = [(case["case"]["row"], sorted(case["ms"])) for case in cases if case["ms"]]
    assert timed.count(("triton, few slots", ["decode device", "encode device"])) == 1
    # Flat out twice; at pace and with a cold cache once each.
    assert timed.count(("triton, few slots", ["decode wall", "encode wall"])) == 4
    assert timed.count(("torch, eager", ["decode wall", "encode wall"])) == 2


def test_a_row_that_takes_all_the_time_takes_no_other_row_s(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(model: EncodecModel, slots: int, device: torch.device) -> Any:
        time.sleep(1000)

    rows = (Row("torch, eager", partial(torch_engine, graph=False)), Row("slow", slow))
    monkeypatch.setattr(gpu, "RIVALS", rows)
    monkeypatch.setattr(gpu, "GpuLimits", lambda: gpu_limits(row_s=0.5, frames=2))
    cases = ran(gpu, tmp_path, monkeypatch, "rivals", "--budget", "1e4")
    (skipped,) = (case for case in cases if "skipped" in case["case"])
    assert skipped["values"]["reason"].startswith("TimeoutError")
    assert sum(bool(case["ms"]) for case in cases) == 2


def test_rivals_are_compiled_and_transformers_has_no_state(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        next(row for row in RIVALS if row.stateless),
        Row("torch.compile", partial(CompiledSteps, graph=True, backend="eager")),
    )
    monkeypatch.setattr(gpu, "RIVALS", rows)
    monkeypatch.setattr(gpu, "GpuLimits", lambda: gpu_limits(row_s=1e4, frames=2, device_frames=2))
    cases = ran(gpu, tmp_path, monkeypatch, "rivals", "--budget", "1e4")
    timed = {(case["case"]["row"], case["case"]["has_state"]) for case in cases if case["ms"]}
    assert timed == {("transformers, per frame", False), ("torch.compile", True)}


def test_codes_of_speech_are_counted(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Row("torch, eager", partial(torch_engine, graph=False)), Row("broken", broken))
    monkeypatch.setattr(gpu, "FLIPS", rows)
    monkeypatch.setattr(gpu, "speech", lambda slots: noise(slots, 4 * 8))
    counted, skipped = ran(gpu, tmp_path, monkeypatch, "flips", "--budget", "1e4")
    assert counted["values"] == {
        "frames": 8 * 4,
        "frames_that_differ": 0.0,
        "codes_that_differ": 0.0,
    }
    assert skipped["case"] == {"skipped": "broken"}


def test_speech_of_a_slot_is_the_recording_from_another_place_on() -> None:
    from benches.workload import speech

    audio = speech(2)
    assert audio.shape == (2, 96_000)
    assert not torch.equal(audio[0], audio[1])
    assert torch.equal(audio[0].sort().values, audio[1].sort().values)
    assert 0.1 < float(audio.abs().max()) < 1


@pytest.mark.parametrize("most", [0, 256, 1234, 3000, 65_536])
def test_the_most_streams_are_found_within_a_quarter(most: int) -> None:
    candidates = streams.sizes()
    assert all(b / a <= 1.3 for a, b in pairwise(candidates))
    tried: list[int] = []

    def keeps_up(slots: int) -> bool:
        tried.append(slots)
        return slots <= most

    best = streams.search(candidates, keeps_up, timing.TimeBudget(1e4))
    assert best == sum(slots <= most for slots in candidates) - 1
    assert len(tried) == len(set(tried)) <= 12


def test_a_size_that_there_is_no_memory_for_is_too_many() -> None:
    def keeps_up(slots: int) -> bool:
        if slots > 2000:
            raise RuntimeError("out of memory")
        return True

    best = streams.search(streams.sizes(), keeps_up, timing.TimeBudget(1e4))
    assert 1600 < streams.sizes()[best] <= 2000


class Late:
    """A runner that takes longer than a frame in these ticks."""

    def __init__(self, *late: int) -> None:
        self.late, self.count = late, 0
        self.ticks: dict[str, Step] = {}

    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count in self.late:
            time.sleep(0.012)
        return pcm

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes


def test_a_tick_is_late_by_when_it_was_due() -> None:
    run = pace.paced(Late(3), noise(1, 64), 8, 0.05, 0.5, frame_ms=5.0)
    assert run.planned == 10
    # The third holds up the fourth, which is late too although it took no time itself.
    assert [ms > 5.0 for ms in run.ms[2:4]] == [True, True]
    assert run.late >= 2


def test_a_paced_run_that_is_lost_is_given_up() -> None:
    run = pace.paced(Late(1, 2, 3), noise(1, 64), 8, 10.0, streams.LATE_ALLOWED, frame_ms=5.0)
    assert run.planned == 2000
    assert len(run.ticks) < run.planned
    assert not run.kept


def test_a_paced_run_names_its_worst_ticks_by_part() -> None:
    ticks = [(0.0, 1.0, 2.0)] * 6 + [(20.0, 21.5, 22.0), (0.5, 1.0, 16.0)]
    run = pace.PacedRun(ticks, 8, 13.0, 0.25)
    assert (run.late, run.kept) == (2, True)
    assert run.worst()[-2:] == [[6, 20.0, 1.5, 0.5], [7, 0.5, 0.5, 15.0]]  # type: ignore[index]
    assert not pace.PacedRun(ticks, 9, 13.0, 0.25).kept
    assert not pace.PacedRun(ticks, 8, 13.0, 0.2).kept


def test_a_container_s_standstills_are_counted(tmp_path: Path) -> None:
    second, first = tmp_path / "v2", tmp_path / "v1"
    second.write_text("usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 51000\n")
    first.write_text("nr_periods 9\nnr_throttled 3\nthrottled_time 51000000\n")
    assert pace.throttling(tmp_path / "none", second) == {"throttled": 4, "throttled_ms": 51}
    assert pace.throttling(first) == {"throttled": 3, "throttled_ms": 51}
    second.write_text("usage_usec 5\n")
    assert pace.throttling(second) == pace.throttling(tmp_path / "none") == {}
    with pace.Pressure() as pressure:
        torch.zeros(1 << 22).fill_(1.0)
    assert {"preempted", "minor_faults", "major_faults"} <= pressure.values.keys()


@pytest.mark.parametrize(("late", "chosen"), [((0, 0), 3), ((2, 1), 1), ((1, 2), 3)])
def test_the_number_of_threads_that_was_late_less_goes_on(
    late: tuple[int, int], chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, given = torch.get_num_threads(), iter(late)

    def paced(*arguments: Any) -> pace.PacedRun:
        return pace.PacedRun([(0.0, 1.0, 20.0)] * next(given) + [(0.0, 1.0, 2.0)], 9, 13.0, 1.0)

    monkeypatch.setattr(streams, "paced", paced)
    record, row = (
        Record("gpu-streams", folder=tmp_path),
        Row("torch", partial(torch_engine, graph=False)),
    )
    try:
        torch.set_num_threads(3)
        audio = noise(2, 64)
        streams.choose_threads(record, row, Late(), audio, 8, timing.TimeBudget(1e4))
        assert torch.get_num_threads() == chosen
    finally:
        torch.set_num_threads(before)
    assert [case.values["threads"] for case in record.cases] == [3, 1]
    assert [case.values["streams"] for case in record.cases] == [0, 0]


def test_streams_are_confirmed_at_pace_or_fewer_are_tried(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", (Row("torch", partial(torch_engine, graph=False)),))
    monkeypatch.setattr(streams, "sizes", lambda: [2, 3, 4])
    monkeypatch.setattr(streams, "FRAME_MS", 1e4)
    limits = streams.StreamLimits
    monkeypatch.setattr(streams, "StreamLimits", lambda: limits(ticks=1, paced_s=0.02))
    monkeypatch.setattr(streams, "choose_threads", lambda *_: None)
    lost = iter([pace.PacedRun([(0.0, 0.5, 1.0)], 2, 13.0, 1.0)])
    whole = pace.paced

    def paced(runner: Any, audio: torch.Tensor, hop: int, seconds: float, *_: float) -> Any:
        monkeypatch.setattr(streams, "FRAME_MS", 10.0)
        return next(lost, None) or whole(runner, audio, hop, seconds, 1.0, 10.0)

    monkeypatch.setattr(streams, "paced", paced)
    cases = ran(gpu, tmp_path, monkeypatch, "streams", "--budget", "1e4")
    found = [
        (case["case"]["slots"], case["case"]["paced"], case["values"]["streams"])
        for case in cases
        if "streams" in case["values"]
    ]
    assert found == [(2, False, 2), (4, False, 4), (4, True, 0), (3, True, 3)]


def test_every_layer_is_timed_by_both_sets_of_tiles(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ceilings", lambda device: {"bytes": 1.0, "exact": 1.0})
    monkeypatch.setattr(kernels, "REPLAYS", 1)
    monkeypatch.setattr(kernels, "PER_GRAPH", 1)
    arguments = ("--slots", "1", "--precision", "exact", "--budget", "1e4")
    cases = ran(kernels, tmp_path, monkeypatch, *arguments)
    timed = [case["case"]["rules"] for case in cases if case["ms"]]
    count = len(layers(small_model()))
    assert timed == ["few"] * count + ["many"] * count


def test_a_bench_without_time_says_so(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ceilings", lambda device: {"bytes": 1.0, "exact": 1.0})
    cases = ran(kernels, tmp_path, monkeypatch, "--budget", "0")
    assert cases[-1]["case"] == {"skipped": "all other layers"}


def test_names_of_rows_are_their_own() -> None:
    for rows in (LATENCY, RIVALS, FLIPS):
        assert len({row.name for row in rows}) == len(rows)


def test_a_gpu_machine_needs_few_packages() -> None:
    program = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ABSENT}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import benches.gpu, benches.gpu_day, benches.kernels
for name in ('test_engine', 'test_layers', 'test_sanitizer'):
    runpy.run_path(f'tests/gpu/{{name}}.py')
"""
    environment = {**os.environ, "PYTHONPATH": ".:kernels"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
