"""What encoding and decoding a corpus have in common: planning, resuming, working, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from encodec_rt.corpus.manifest import OutputFolder, write_json
from encodec_rt.corpus.pool import default_jobs, run_units
from encodec_rt.corpus.records import Done
from encodec_rt.corpus.summary import PICTURE, SUMMARY, Summary, draw
from encodec_rt.corpus.units import Unit
from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.extras import missing
from encodec_rt.streaming.codec import Codec
from encodec_rt.version import __version__

FORMAT = 1
"""The version of the manifest and the state beside it."""
_PACKAGES = ("torch", "soxr", "soundfile", "av")
"""The packages that can change a sample or a code."""


@dataclass
class RunProgress:
    """How far a run is. ``seconds`` are those of the audio of this run."""

    units: int
    finished: int
    rate_hz: int
    clips: int = 0
    seconds: float = 0.0
    errors: int = 0
    cpu_s: float = 0.0
    began: float = 0.0
    in_this_run: int = 0

    @property
    def wall_s(self) -> float:
        """Seconds since the work began."""
        return time.perf_counter() - self.began

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second."""
        return self.seconds / max(1e-9, self.wall_s)

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace so far, None before the first unit."""
        if not self.in_this_run:
            return None
        return (self.units - self.finished) * self.wall_s / self.in_this_run

    def add(self, done: Done) -> None:
        """Count a unit that was just finished."""
        self.finished += 1
        self.in_this_run += 1
        self.clips += done.record.clips
        self.seconds += done.record.samples / self.rate_hz
        self.errors += len(done.record.failures)
        self.cpu_s += done.cpu_s


@dataclass(frozen=True)
class JobRunner:
    """How the units are processed, and who is told.

    ``ray`` is the address of a Ray cluster, or "local", instead of local processes; ``jobs`` is the
    number of workers in both cases, None for one per core, or one for a GPU.
    """

    jobs: int | None = None
    ray: str | None = None
    on_progress: Callable[[RunProgress], None] = lambda _: None
    on_remark: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        """Raise ConfigError for no workers, BackendUnavailable if Ray is not installed."""
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"jobs={self.jobs}; at least one process is needed")
        # Found but not imported: Ray reads its settings on import, and they are set later.
        if self.ray is not None and find_spec("ray") is None:
            refusal = missing(ModuleNotFoundError(name="ray"), "a run on Ray")
            assert refusal is not None, "ray is in EXTRAS"
            raise refusal

    def run(
        self,
        folder: OutputFolder,
        count: int,
        make: Callable[..., Callable[[Unit], Done]],
        arguments: tuple[Any, ...],
        codec: Codec,
    ) -> None:
        """Process the unfinished of the ``count`` units in the plan of ``folder``, by ``make``'s
        result.

        ``arguments`` hold ``codec``.
        """
        if damaged := folder.forget_damaged(count):
            shards = "1 shard" if damaged == 1 else f"{damaged} shards"
            self.on_remark(
                f"files of {shards} in {folder.data} are missing or have another size; they are "
                "made again"
            )
        todo = [index for index in range(count) if not folder.is_finished(index)]
        rate_hz = codec.config.sampling_rate
        progress = RunProgress(count, count - len(todo), rate_hz, began=time.perf_counter())
        self.on_progress(progress)
        for done in self._results(folder, todo, make, arguments, codec.device.type):
            progress.add(done)
            self.on_progress(progress)

    def _results(
        self,
        folder: OutputFolder,
        todo: list[int],
        make: Callable[..., Callable[[Unit], Done]],
        arguments: tuple[Any, ...],
        device: str,
    ) -> Iterator[Done]:
        if self.ray is not None:
            from encodec_rt.corpus.ray_data import run_on_ray

            return run_on_ray(
                self.ray, make, arguments, folder, todo, self.jobs, device, self.on_remark
            )
        wanted = set(todo)
        units = (unit for unit in folder.units() if unit.index in wanted)
        jobs = self.jobs or (default_jobs() if device == "cpu" else 1)
        return run_units(make, arguments, units, min(jobs, max(1, len(todo))))


def begin(folder: OutputFolder, manifest: Mapping[str, Any], plan: Iterable[Unit]) -> int:
    """Write or compare the manifest and the plan -> units. Raises ConfigError and InputError."""
    folder.begin(manifest)
    return folder.keep_plan(plan)


def environment(codec: Codec) -> dict[str, Any]:
    """What every manifest has: versions, and the kind of machine, on which sums depend."""
    return {
        "format": FORMAT,
        "encodec_rt": __version__,
        "backend": codec.ops.name,
        "device": codec.device.type,
        "resampler": f"soxr {_version('soxr')}, high quality",
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def keep_summary(folder: OutputFolder, summary: Summary) -> None:
    """Write summary.json and the picture; without matplotlib there is no picture."""
    write_json(folder.path / SUMMARY, summary.as_json())
    picture = folder.path / PICTURE
    try:
        draw(summary, picture)
    except BackendUnavailable:
        picture.unlink(missing_ok=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
