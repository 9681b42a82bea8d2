"""Ticks at the pace of a microphone, and what held them up: which part, and what the system says.

A container may have a share of a processor only: threads that wait for one another by spinning use
it up, and then all of the process stands still until the next period, some tens of milliseconds
later. ``Pressure`` counts how often, beside preemptions and page faults.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from torch import Tensor

from benches.environment import Json
from benches.rows import Contender
from benches.timing import FRAME_MS, wait_until
from benches.workload import frames

CGROUP = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))
"""Of version 2 and 1."""
WORST = 5
"""Ticks that a run names."""


@dataclass(frozen=True)
class PacedRun:
    """Of each tick the milliseconds since it was due when it began, was encoded and was heard."""

    ticks: list[tuple[float, float, float]]
    planned: int
    deadline_ms: float
    allowed: float

    @property
    def ms(self) -> list[float]:
        """Milliseconds from when each frame was due until it was heard."""
        return [heard for *_, heard in self.ticks]

    @property
    def late(self) -> int:
        """Ticks over the deadline."""
        return sum(ms > self.deadline_ms for ms in self.ms)

    @property
    def kept(self) -> bool:
        """Whether the run went to its end, and no more ticks were late than may be."""
        return len(self.ticks) == self.planned and self.late <= self.allowed * self.planned

    def worst(self) -> Json:
        """The latest ticks, in order: number, and milliseconds to begin, to encode, to decode."""
        latest = sorted(range(len(self.ticks)), key=lambda at: -self.ticks[at][2])[:WORST]
        found: list[Json] = []
        for at in sorted(latest):
            begun, encoded, heard = self.ticks[at]
            parts = (begun, encoded - begun, heard - encoded)
            found.append([at, *(round(ms, 2) for ms in parts)])
        return found


def paced(
    runner: Contender,
    audio: Tensor,
    hop: int,
    seconds: float,
    allowed: float,
    frame_ms: float = FRAME_MS,
) -> PacedRun:
    """Ticks of [S, n] audio, one frame's time after another.

    A tick that is late makes the next one late as well. Stops once more than a share ``allowed`` of
    all that were planned is late.
    """
    inputs = frames(audio, hop)
    planned = max(1, int(1000 * seconds / frame_ms))
    ticks: list[tuple[float, float, float]] = []
    late = 0
    start = time.perf_counter()
    while len(ticks) < planned and late <= allowed * planned:
        due = start + (1 + len(ticks)) * frame_ms / 1000
        wait_until(due)
        begun = time.perf_counter()
        codes = runner.encode(inputs[len(ticks) % len(inputs)])
        encoded = time.perf_counter()
        runner.decode(codes)
        heard = time.perf_counter()
        ticks.append((1e3 * (begun - due), 1e3 * (encoded - due), 1e3 * (heard - due)))
        late += ticks[-1][2] > frame_ms
    return PacedRun(ticks, planned, frame_ms, allowed)


@dataclass
class Pressure:
    """What the system did to this process between ``with`` and its end, in ``values``."""

    values: dict[str, Json] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Pressure:
        self._before = self._now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        now = self._now()
        self.values = {name: now[name] - self._before.get(name, 0) for name in now}

    @staticmethod
    def _now() -> dict[str, int]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "preempted": usage.ru_nivcsw,
            "minor_faults": usage.ru_minflt,
            "major_faults": usage.ru_majflt,
        }
        return found | throttling(*CGROUP)


def throttling(*files: Path) -> dict[str, int]:
    """How often and how long this container stood still for having used up its share.

    Empty where none of ``files`` says so.
    """
    for path in files:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        said = {name: int(value) for name, value in (line.split() for line in lines)}
        found = {"throttled": said["nr_throttled"]} if "nr_throttled" in said else {}
        if "throttled_usec" in said:
            found["throttled_ms"] = said["throttled_usec"] // 1000
        elif "throttled_time" in said:
            found["throttled_ms"] = said["throttled_time"] // 1_000_000
        return found
    return {}
