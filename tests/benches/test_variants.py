"""Variants of the rules: that each changes what it says and no more, and how they are tried."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from benches import profile, variants
from benches.checks import codes_of
from benches.record import Record
from benches.rows import Row, torch_engine
from benches.variants import VARIANTS, Variant, chosen_of
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.cuda_graph import Tick, capture_graph
from encodec_rt_kernels import configs
from encodec_rt_kernels.conv1d import tile_of
from tests.support.models import random_model, tiny_config

CPU = torch.device("cpu")
ARCH = 90


@pytest.fixture
def rules_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant lives in a process of its own, and changes its modules for good."""
    for name, value in vars(configs).items():
        monkeypatch.setattr(configs, name, value)
    monkeypatch.setattr(Tick, "_run_from_host", Tick._run_from_host)


def launches_of(few: bool) -> dict[str, Any]:
    """What the rules give every layer of the 24 kHz model, and the search."""
    rules = configs.Rules(few=few, chained=few)
    convs = [(1, 32, 7, 1), (32, 64, 4, 2), (64, 128, 8, 4), (128, 256, 10, 5), (256, 512, 16, 8)]
    convs += [(512, 128, 7, 1), (128, 512, 7, 1), (32, 1, 7, 1)]
    found: dict[str, Any] = {f"conv {each}": tile_of(ARCH, rules, *each) for each in convs}
    for inputs, stride, outputs in ((512, 8, 256), (256, 5, 128), (128, 4, 64), (64, 2, 32)):
        vector = configs.conv_transpose1d_vector(ARCH, rules, inputs, 2)
        tile = vector or configs.conv_transpose1d(ARCH, rules, inputs, stride * outputs)
        found[f"transposed {inputs}"] = tile
    for channels in (32, 64):
        found[f"resblock {channels}"] = configs.resblock(ARCH, rules, channels)
    for channels in (128, 256):
        found[f"hidden {channels}"] = tile_of(ARCH, rules, channels, channels // 2, 3)
        found[f"join {channels}"] = configs.join(ARCH, rules, channels)
    found["lstm"] = configs.lstm_vector(ARCH, rules, 512) or configs.lstm(ARCH, rules, 512)
    found["score"] = configs.rvq_score(ARCH, rules, 128, 1024), configs.transposes_codebooks(rules)
    found["choose"] = configs.rvq_choose(ARCH, rules)
    found["host"] = Tick._run_from_host
    return found


def sizes_of(launch: object) -> list[int]:
    return [launch.rows, launch.cols, launch.depth] if isinstance(launch, configs.Tile) else []


@pytest.mark.usefixtures("rules_are_restored")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: f"{each.rules}, {each.name}")
def test_a_variant_changes_the_rules_it_is_measured_by(variant: Variant) -> None:
    few = variant.rules == "few"
    before = launches_of(few)
    variant.change()
    after = launches_of(few)
    changed = {name for name in before if before[name] != after[name]}
    assert bool(changed) != (variant.name in variants.UNCHANGED)
    for name in changed:
        assert all(size > 0 and size & (size - 1) == 0 for size in sizes_of(after[name]))


@pytest.mark.usefixtures("rules_are_restored")
@pytest.mark.parametrize("change", [variants.separate_copies, variants.mapped_memory])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_tick_gives_the_same_however_it_is_copied(
    change: Callable[[], None], dtype: torch.dtype
) -> None:
    x = torch.arange(15).reshape(3, 5).to(dtype)
    active = torch.tensor([True, False, True])
    tick = Tick(lambda x, active: 2 * x * active[:, None], torch.zeros_like(x), graph=None)
    tick._prepare_host(pinned=False)
    assert tick._on_host
    tick._on_host.fill(x, active)
    change()
    tick._run_from_host()
    assert torch.equal(tick._y_host, 2 * x * active[:, None])


def test_each_variant_has_a_name_of_its_own_and_stands_between_the_rules() -> None:
    for rules in ("few", "many"):
        names = [each.name for each in VARIANTS if each.rules == rules]
        assert len(set(names)) == len(names)
        assert (names[0], names[-1]) == variants.UNCHANGED


def test_chosen_variants_come_with_the_rules_beside() -> None:
    names = [VARIANTS[at].name for at in chosen_of(["few", "many"], ["choose, 4 warps"])]
    assert names == ["rules", "choose, 4 warps", "rules again"]
    assert len(chosen_of(["few"], None)) == sum(each.rules == "few" for each in VARIANTS)
    assert chosen_of(["few"], ["no such variant"]) == []


class Inline:
    """A process that is over when it has been started."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)

    def is_alive(self) -> bool:
        return False

    def kill(self) -> None:
        pass


def small_model() -> EncodecModel:
    return random_model(tiny_config(pad_mode="constant"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU in the place of a GPU, and this process in that of each variant's."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr("encodec_rt.streaming.cuda_graph.capture", lambda device, *runs: runs)
    monkeypatch.setattr("encodec_rt.streaming.backends.triton.capture_eagerly", capture_graph)
    monkeypatch.setattr(variants, "require_cuda", lambda: CPU)
    monkeypatch.setattr(variants, "ieee_products", lambda: None)
    monkeypatch.setattr(variants, "random_24khz", small_model)
    monkeypatch.setattr(variants, "replay_ms", lambda replay, count: [1.0])
    for name, value in (("FRAMES", 1), ("WALL_FRAMES", 1), ("SLOTS", {"few": 1, "many": 2})):
        monkeypatch.setattr(variants, name, value)
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=Inline)
    )
    yield
    torch.set_num_threads(threads)


def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["variants", *arguments, "--out", str(tmp_path)])
    status = variants.main()
    (path,) = tmp_path.glob("*.json")
    return status, json.loads(path.read_text())["cases"]


def refuse() -> None:
    raise RuntimeError("out of resources")


@pytest.mark.usefixtures("rules_are_restored", "device")
def test_variants_are_timed_beside_the_rules_and_one_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = (
        Variant("few", "rules", lambda: None),
        Variant("few", "vectors", lambda: variants.constants(VECTOR_CHANNELS=8)),
        Variant("many", "too large", refuse),
    )
    monkeypatch.setattr(variants, "VARIANTS", tried)
    status, cases = ran(tmp_path, monkeypatch, "--budget", "1e4")
    assert status == 0
    timed = {case["case"]["variant"]: sorted(case["ms"]) for case in cases if case["ms"]}
    every = sorted(f"{way} {kind}" for way in ("encode", "decode") for kind in ("device", "wall"))
    assert timed == {"rules": every, "vectors": every}
    assert cases[-1]["case"] == {"skipped": "too large"}
    assert cases[-1]["values"]["reason"] == "RuntimeError: out of resources"


@pytest.mark.usefixtures("rules_are_restored", "device")
def test_a_variant_with_other_codes_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one() -> None:
        right = codes_of
        monkeypatch.setattr(variants, "codes_of", lambda *given: (right(*given) + 1) % 8)

    tried = (Variant("few", "rules", lambda: None), Variant("few", "wrong", off_by_one))
    monkeypatch.setattr(variants, "VARIANTS", tried)
    # One frame may always differ.
    monkeypatch.setattr(variants, "FRAMES", 2)
    status, cases = ran(tmp_path, monkeypatch, "--budget", "1e4")
    assert status == 1
    assert cases[-1]["values"]["wrong"] is True
    assert not cases[-1]["ms"]


@pytest.mark.usefixtures("rules_are_restored", "device")
def test_variants_without_time_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, cases = ran(tmp_path, monkeypatch, "--budget", "0", "--names", "16 rows")
    assert status == 0
    assert [case["case"]["skipped"] for case in cases] == ["rules", "16 rows", "rules again"]


def event(name: str, start: float, end: float, kind: str = "CUDA") -> SimpleNamespace:
    """Of torch's profiler."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        device_type=SimpleNamespace(name=kind),
    )


class Profiler:
    """Gives these events; of ``torch.profiler``."""

    events_given: ClassVar[list[SimpleNamespace]] = []

    def __init__(self, activities: object) -> None:
        pass

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def events(self) -> list[SimpleNamespace]:
        return self.events_given


@pytest.fixture
def two_replays(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Two replays of a chain: the second launch begins before the first has ended, and waits."""
    events = []
    for begin in (100.0, 200.0):
        events += [event("conv", begin, begin + 10), event("lstm", begin + 2, begin + 15)]
        events.append(event("copy", begin + 16, begin + 17))
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(profile, "REPLAYS", 2)
    monkeypatch.setattr(Profiler, "events_given", events)
    return events


def test_a_launch_adds_what_passes_from_the_end_of_the_one_before_it(
    two_replays: list[SimpleNamespace],
) -> None:
    two_replays.insert(0, event("cudaGraphLaunch", 90.0, 99.0, kind="CPU"))
    found = profile.timeline(lambda: None, CPU)
    assert found == [("conv", 10.0, 10.0), ("lstm", 13.0, 5.0), ("copy", 1.0, 2.0)]


def test_a_replay_that_was_not_seen_whole_gives_no_times(
    two_replays: list[SimpleNamespace],
) -> None:
    two_replays.pop()
    assert profile.timeline(lambda: None, CPU) == []
    two_replays.clear()
    assert profile.timeline(lambda: None, CPU) == []


def test_the_launches_of_both_directions_are_noted_in_order(
    two_replays: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encodec_rt.streaming.cuda_graph.capture", lambda device, *runs: runs)
    row = Row("torch", partial(torch_engine, graph=False))
    record = Record("gpu-profile", folder=tmp_path)
    runner = triton_like_engine()
    profile.profile(record, row, runner, 1, CPU)
    assert [case.case["profile"] for case in record.cases] == ["encode", "decode"]
    for case in record.cases:
        assert case.values["launches"] == 3
        assert case.values["replay_us"] == 17.0
        assert case.values["order"] == [
            ["conv", 10.0, 10.0],
            ["lstm", 13.0, 5.0],
            ["copy", 1.0, 2.0],
        ]


def triton_like_engine() -> Any:
    """An engine whose steps count as captured."""
    step = SimpleNamespace(again=lambda: None, eager_because=None)
    return SimpleNamespace(ticks={"encode": step, "decode": step})


def test_a_step_without_a_graph_is_not_profiled(
    two_replays: list[SimpleNamespace], tmp_path: Path
) -> None:
    record = Record("gpu-profile", folder=tmp_path)
    step = SimpleNamespace(again=lambda: None, eager_because="graph=False")
    runner: Any = SimpleNamespace(ticks={"encode": step})
    profile.profile(record, Row("torch", partial(torch_engine, graph=False)), runner, 1, CPU)
    assert record.cases == []
