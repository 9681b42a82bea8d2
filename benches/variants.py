"""Experiments on a GPU: other tiles than those of the rules, each beside the rules.

    python -m benches.variants [--only few many] [--names "16 rows"] [--jobs 8] [--budget 60]

Each variant has its own process. They compile at the same time but measure one after another, so
that nothing else runs on the device. For few slots the time of one stream's frame is measured, on
the device and from host to host; for many slots that of 1024 on the device. The unchanged rules are
measured first and last: a gain smaller than the difference of those two means nothing. A variant
must give the same codes as the rules, except at near-ties.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benches.checks import FAILURES, codes_of, require_same_codes
from benches.environment import Json
from benches.kernels import finish, ieee_products, require_cuda
from benches.record import RESULTS, Record
from benches.rows import triton_engine
from benches.timing import TimeBudget, no_collection, replay_ms, wall_ms
from benches.workload import noise, random_24khz
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.cuda_graph import Tick
from encodec_rt_kernels import commit, configs
from encodec_rt_kernels.configs import Tile

Change = Callable[[], None]
SLOTS = {"few": 1, "many": 1024}
UNCHANGED = ("rules", "rules again")
FRAMES = 30
REPLAYS = {"few": 300, "many": 60}
WALL_FRAMES = 500


def product(deep: dict[str, int] | None = None, broad: dict[str, int] | None = None) -> None:
    """Change fields of convolutions' tiles; ``deep`` layers are those with megabytes of weights."""
    rule = configs._product

    def changed(
        arch: int,
        rules: configs.Rules,
        inputs: int,
        outputs: int,
        taps: int,
        **options: bool,
    ) -> Tile:
        tile = rule(arch, rules, inputs, outputs, taps, **options)
        is_deep = max(inputs, outputs) >= configs.DEEP_CHANNELS
        fields = dict((deep if is_deep else broad) or {})
        for name, size in (("cols", outputs), ("depth", inputs * taps)):
            if name in fields:
                fields[name] = max(16, min(fields[name], 1 << (size - 1).bit_length()))
        return replace(tile, **fields)  # type: ignore[arg-type]

    configs._product = changed


def tile_of(name: str, **fields: int) -> None:
    """Change fields of the tile that the rule ``name`` gives."""
    rule = getattr(configs, name)

    def changed(*arguments: Any) -> Tile | None:
        tile: Tile | None = rule(*arguments)
        return tile and replace(tile, **fields)  # type: ignore[arg-type]

    setattr(configs, name, changed)


def constants(**values: int) -> None:
    """Change constants of the rules."""
    for name, value in values.items():
        assert hasattr(configs, name)
        setattr(configs, name, value)


def option(name: str, **values: int) -> None:
    """Change launch options that the rule ``name`` gives."""
    rule = getattr(configs, name)
    setattr(configs, name, lambda *arguments: {**rule(*arguments), **values})


def separate_copies() -> None:
    """Copy a tick's input and mask separately, and its result on the device too."""

    def run(self: Tick) -> None:
        assert self._on_host is not None
        self._inputs.x.copy_(self._on_host.x, non_blocking=True)
        self._inputs.active.copy_(self._on_host.active, non_blocking=True)
        self._run()
        self._y_host.copy_(self._y, non_blocking=True)

    Tick._run_from_host = run  # type: ignore[method-assign]


def mapped_memory() -> None:
    """Make a tick read its input from host memory and write its result there.

    A kernel takes the place of each copy, since pinned memory has a device address too.
    """

    @functools.cache
    def one(device: torch.device) -> torch.Tensor:
        # Created in the runs before the capture, so that the graph need not fill it.
        return torch.ones(1, dtype=torch.bool, device=device)

    def copy(target: torch.Tensor, source: torch.Tensor, device: torch.device) -> None:
        to, of = (each.view(-1).view(torch.float32)[None] for each in (target, source))
        commit(to, of, one(device))

    def run(self: Tick) -> None:
        assert self._on_host is not None
        copy(self._inputs.whole, self._on_host.whole, self._y.device)
        y = self._step(self._inputs.x, self._inputs.active)
        copy(self._y_host, y.contiguous(), self._y.device)

    Tick._run_from_host = run  # type: ignore[method-assign]


@dataclass(frozen=True)
class Variant:
    """A change of the rules for few or for many slots."""

    rules: str
    name: str
    change: Change


def _few(name: str, change: Change) -> Variant:
    return Variant("few", name, change)


def _many(name: str, change: Change) -> Variant:
    return Variant("many", name, change)


VARIANTS = (
    _few("rules", lambda: None),
    _few("separate copies", separate_copies),
    _few("mapped memory", mapped_memory),
    _few("16 rows", partial(product, deep={"rows": 16}, broad={"rows": 16})),
    _few("deep, 64 deep", partial(product, deep={"depth": 64})),
    _few("resblock, 4 rows", partial(tile_of, "resblock", rows=4)),
    _few("resblock, 2 warps", partial(tile_of, "resblock", warps=2)),
    _few("resblock, 16 rows, 8 warps", partial(tile_of, "resblock", rows=16, warps=8)),
    _few("parts of 256", partial(constants, PART_DEPTH=256)),
    _few("vectors from 256", partial(constants, VECTOR_CHANNELS=256)),
    _few("one output, 32 rows", partial(tile_of, "conv1d_single", rows=32)),
    _few("choose, 4 warps", partial(option, "rvq_choose", num_warps=4)),
    _few("rules again", lambda: None),
    _many("rules", lambda: None),
    _many("one row whole", partial(constants, ROW_PROGRAMS=0)),
    _many("one row over 8", partial(constants, ROW_PROGRAMS=8)),
    _many("one row over 32", partial(constants, ROW_PROGRAMS=32)),
    _many("books as they are", partial(constants, TRANSPOSED_CODEBOOKS=False)),
    _many("longest 64x64", partial(constants, LONGEST_DEPTH=1 << 20)),
    _many("all 64x64x16, 4 stages", partial(product, *[{"depth": 16, "stages": 4}] * 2)),
    _many("score 128 rows, 8 warps", partial(tile_of, "rvq_score", rows=128, warps=8)),
    _many("score 32 rows", partial(tile_of, "rvq_score", rows=32)),
    _many("lstm 2 stages", partial(tile_of, "lstm", stages=2)),
    _many("resblock 8 warps", partial(tile_of, "resblock", warps=8)),
    _many("resblock 32 deep, 3 stages", partial(tile_of, "resblock", depth=32, stages=3)),
    _many("one output, 32 rows", partial(tile_of, "conv1d_single", rows=32)),
    _many("one output, 128 rows", partial(tile_of, "conv1d_single", rows=128)),
    _many("rules again", lambda: None),
)
"""Those of the last GPU session, to be replaced for the next; docs/kernels.md has the results."""


def try_out(index: int, folder: str) -> None:
    """In a separate process: compile, wait for the device, measure, and write the results."""
    torch.set_num_threads(1)
    variant = VARIANTS[index]
    found: dict[str, Any] = {}
    try:
        variant.change()
        device = require_cuda()
        ieee_products()
        few = variant.rules == "few"
        model, slots = EncodecModel.from_pretrained(folder), SLOTS[variant.rules]
        begun = time.perf_counter()
        engine = triton_engine(model, slots, device, few=few, chained=few)
        found["seconds_to_make"] = time.perf_counter() - begun
        with Path(folder, "device").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            codes = codes_of(
                engine, noise(slots, FRAMES * model.config.hop_length), model.config.hop_length
            )
            found["codes"] = codes[:, : min(slots, 64)].tolist()
            for name, tick in engine.ticks.items():
                found[f"{name} device"] = replay_ms(tick.again, REPLAYS[variant.rules])
            if few:
                audio = noise(slots, WALL_FRAMES * model.config.hop_length)
                with no_collection():
                    both = wall_ms(engine, audio, model.config.hop_length)
                found |= dict(zip(("encode wall", "decode wall"), both, strict=True))
    except FAILURES as error:
        found["reason"] = f"{type(error).__name__}: {error}"[:300]
    Path(folder, f"{index}.json").write_text(json.dumps(found), "utf-8")


def chosen_of(rules: list[str], names: list[str] | None) -> list[int]:
    """Indices of the variants of ``rules``, or only of those with ``names`` if given.

    The unchanged rules are included if there is anything to compare them with.
    """
    chosen = [at for at, variant in enumerate(VARIANTS) if variant.rules in rules]
    if names is None:
        return chosen
    kinds = {VARIANTS[at].rules for at in chosen if VARIANTS[at].name in names}
    names = [*names, *UNCHANGED]
    return [at for at in chosen if VARIANTS[at].rules in kinds and VARIANTS[at].name in names]


def main() -> int:
    """Try the variants and write one JSON file; 1 if one was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=["few", "many"], default=["few", "many"])
    parser.add_argument("--names", nargs="+", help="only these variants, beside the rules")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--budget", type=float, default=90.0, help="seconds in all")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    budget = TimeBudget(options.budget)
    record = Record("gpu-variants", device=require_cuda().type, folder=options.out)
    chosen = chosen_of(options.only, options.names)
    if not chosen:
        parser.error(f"--names {options.names}: no variant of {options.only} has that name")
    with tempfile.TemporaryDirectory() as folder:
        random_24khz().save_pretrained(folder)
        context = multiprocessing.get_context("spawn")
        waiting, unrecorded = list(chosen), list(chosen)
        running: dict[int, multiprocessing.context.SpawnProcess] = {}
        codes: dict[str, torch.Tensor] = {}
        while unrecorded and budget.left() > 0:
            while waiting and len(running) < options.jobs:
                at = waiting.pop(0)
                running[at] = context.Process(target=try_out, args=(at, folder))
                running[at].start()
            time.sleep(0.05)
            running = {at: process for at, process in running.items() if process.is_alive()}
            # In order, since the rules are what to compare with; and at once, in case of a kill.
            while unrecorded and unrecorded[0] not in (*running, *waiting):
                _note(record, VARIANTS[unrecorded[0]], _found(folder, unrecorded[0]), codes)
                record.save()
                del unrecorded[0]
        for process in running.values():
            process.kill()
        for at in unrecorded:
            _note(record, VARIANTS[at], _found(folder, at), codes)
    return finish(record)


def _found(folder: str, index: int) -> dict[str, Any]:
    """What the process of a variant left, or why there is nothing."""
    path = Path(folder, f"{index}.json")
    if not path.exists():
        return {"reason": "no time was left, or its process died"}
    return dict(json.loads(path.read_text("utf-8")))


def _note(
    record: Record, variant: Variant, found: dict[str, Any], codes: dict[str, torch.Tensor]
) -> None:
    case: dict[str, Json] = {
        "rules": variant.rules,
        "variant": variant.name,
        "slots": SLOTS[variant.rules],
    }
    if "reason" in found:
        record.add({"skipped": variant.name}, values={"reason": found["reason"]})
        return
    given = torch.tensor(found.pop("codes"))
    try:
        flips = require_same_codes(given, codes.setdefault(variant.rules, given), "exact")
    except RuntimeError as error:
        record.add(case, values={"reason": str(error), "wrong": True})
        return
    made = found.pop("seconds_to_make")
    timings: dict[str, list[float]] = found
    added = record.add(case, timings, values={"flips": flips, "seconds_to_make": made})
    print(record.table([added]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
