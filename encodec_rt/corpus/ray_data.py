"""The same units and the same work function on Ray Data.

Only each unit's position in the plan is sent: the actors read the plan, the sources and the output
folder themselves, so all machines must see them under the same names. So a run on Ray resumes, and
ends in the same bytes, as one in local processes does. Ray's own file reader, checkpoints and
object store are not used.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.records import Done, UnitRecord
from encodec_rt.corpus.units import Unit
from encodec_rt.errors import ConfigError
from encodec_rt.ray_cluster import start_ray

MAX_OVERHEAD = 0.15
"""The share of the time beyond which the user is told that the corpus is too small for Ray."""
_CPUS_LEFT_FOR_RAY = 0.1


def run_on_ray(
    address: str,
    make: Callable[..., Callable[[Unit], Done]],
    arguments: tuple[Any, ...],
    folder: OutputFolder,
    todo: list[int],
    jobs: int | None,
    device: str,
    say: Callable[[str], None],
) -> Iterator[Done]:
    """The results of the units ``todo``, by actors on the cluster at ``address``.

    "local" starts one on this machine that listens on loopback and requires a token. Raises
    BackendUnavailable without Ray, or without a cluster at the address.
    """
    if not todo:
        return
    ray = start_ray(address, "a run on Ray")
    try:
        import ray.data

        resources = ray.cluster_resources()
        actors, share = _fit(resources, jobs, len(todo), device, say)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        began, worked_s = time.perf_counter(), 0.0
        worker = ray.put((make, arguments))
        wanted = set(todo)
        places = [at for index, at in enumerate(folder.places()) if index in wanted]
        items = ray.data.from_items([{"place": at} for at in places])
        done = items.map_batches(
            _Actor,
            fn_constructor_args=(worker, str(folder.path.resolve())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **share,
        )
        for row in done.iter_rows():
            result = _done(row["done"])
            worked_s += result.wall_s
            yield result
        wall_s = time.perf_counter() - began
        overhead_s = wall_s - worked_s / actors
        if overhead_s > MAX_OVERHEAD * wall_s:
            say(
                f"{overhead_s:.0f} of {wall_s:.0f} s were Ray's own: for a corpus this small, "
                "leave out --ray"
            )
    finally:
        ray.shutdown()


class _Actor:
    """Works on units; one per Ray process."""

    def __init__(self, worker: Any, folder: str) -> None:
        import ray
        import torch

        torch.set_num_threads(1)
        make, arguments = ray.get(worker) if isinstance(worker, ray.ObjectRef) else worker
        self._work = make(*arguments)
        self._folder = OutputFolder(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Positions in the plan -> the results of the units there, as JSON."""
        found = []
        for place in batch["place"].tolist():
            done = self._work(self._folder.unit_at(place))
            found.append(json.dumps(dataclasses.asdict(done)))
        return {"done": found}


def _fit(
    resources: dict[str, float],
    jobs: int | None,
    units: int,
    device: str,
    say: Callable[[str], None],
) -> tuple[int, dict[str, float]]:
    """Actors and what each reserves, so that all of them can start.

    Ray waits forever, without a message, if a plan wants more than the cluster has.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if device != "cpu" and not gpus:
        raise ConfigError("the Ray cluster has no GPU; use --device cpu")
    most = int(cpus if device == "cpu" else gpus)
    wanted = min(jobs or max(1, most), units)
    free = cpus - _CPUS_LEFT_FOR_RAY
    if free <= 0:
        raise ConfigError(f"the Ray cluster has {cpus:g} CPUs, and a run needs one; add a node")
    share = {"num_cpus": round(min(1.0, free / wanted), 3)}
    if wanted > most:
        say(
            f"{wanted} workers would need {wanted} {'CPUs' if device == 'cpu' else 'GPUs'}, but "
            f"the cluster has {most}, so they share them"
        )
    if device != "cpu":
        share["num_gpus"] = round(min(1.0, gpus / wanted), 3)
    return wanted, share


def _done(text: str) -> Done:
    held = json.loads(text)
    return Done(UnitRecord.from_json(held["record"]), held["wall_s"], held["cpu_s"])
