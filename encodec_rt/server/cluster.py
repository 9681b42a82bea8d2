"""Workers on Ray, which places them, restarts them and says where they are; media bypasses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from encodec_rt.errors import ConfigError
from encodec_rt.link.credentials import is_loopback
from encodec_rt.ray_cluster import LOCAL
from encodec_rt.server.settings import ServeSettings
from encodec_rt.server.worker import CodecSettings, Worker, WorkerStatus

_CPUS_LEFT_FOR_RAY = 0.1
START_S = 300.0
"""How long the workers may take to load their models."""


@dataclass(frozen=True)
class RayWorker:
    """A worker that is an actor."""

    actor: Any

    async def status(self) -> WorkerStatus:
        """As ``WorkerHandle.status``."""
        return WorkerStatus(**await self.actor.status.remote())

    async def drain(self) -> None:
        """As ``WorkerHandle.drain``."""
        await self.actor.drain.remote()


def start_workers(
    ray: Any,
    address: str,
    count: int,
    codec: CodecSettings,
    settings: ServeSettings,
    say: Callable[[str], None],
) -> list[RayWorker]:
    """Actors on the cluster that Ray is connected to; each restarts whenever it dies.

    All machines must see the model and the folder of sessions under the same path. Raises
    ConfigError for more workers than the cluster could ever start.
    """
    share = _fit(ray.cluster_resources(), count, codec.device, say)
    # Their answers are awaited while sessions run, so they must come from the same loop.
    actor = ray.remote(max_restarts=-1, max_task_retries=0, **share)(Worker)
    own = "127.0.0.1" if address == LOCAL and is_loopback(settings.host) else None
    return [RayWorker(actor.remote(codec, settings, own)) for _ in range(count)]


def _fit(
    resources: dict[str, float], count: int, device: str, say: Callable[[str], None]
) -> dict[str, float]:
    """What each worker reserves, so that all can start: otherwise Ray would wait forever."""
    kind = "CPU" if device == "cpu" else "GPU"
    cpus, most = resources.get("CPU", 0.0), resources.get(kind, 0.0)
    free = cpus - _CPUS_LEFT_FOR_RAY
    if not most or free <= 0:
        raise ConfigError(f"the Ray cluster has {cpus:g} CPUs and {most:g} {kind}s; add a node")
    if count > most:
        say(f"{count} workers would need {count} {kind}s, but the cluster has {most:g}")
    share = {"num_cpus": round(min(1.0, free / count), 3)}
    if kind == "GPU":
        share["num_gpus"] = round(min(1.0, most / count), 3)
    return share
