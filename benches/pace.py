"""Ticks at the pace of a microphone, and the causes of late ones.

A container may be limited to a share of the CPU. Threads that wait for one another by spinning use
up that quota, and then the whole process is halted (throttled) until the next period, some tens of
milliseconds later. ``Pressure`` counts throttling, preemptions and page faults.
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
"""Where version 2 and version 1 of cgroups report throttling."""
WORST = 5
"""How many of its latest ticks a run lists."""


@dataclass(frozen=True)
class PacedRun:
    """Times of the ticks of a run: ms from when each was due until it began, was encoded, decoded.

    ``planned`` ticks were to run; a share ``allowed`` of them may be later than ``deadline_ms``.
    """

    ticks: list[tuple[float, float, float]]
    planned: int
    deadline_ms: float
    allowed: float

    @property
    def ms(self) -> list[float]:
        """Milliseconds from when each frame was due until it was decoded."""
        return [heard for *_, heard in self.ticks]

    @property
    def late(self) -> int:
        """The number of ticks over the deadline."""
        return sum(ms > self.deadline_ms for ms in self.ms)

    @property
    def kept(self) -> bool:
        """Whether the run was completed, and no more ticks were late than allowed."""
        return len(self.ticks) == self.planned and self.late <= self.allowed * self.planned

    def worst(self) -> Json:
        """The latest ticks in order: number, and the ms until it began, to encode, to decode."""
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
    """Run a tick of [S, n] audio every ``frame_ms``, for ``seconds``.

    A late tick delays the next one. Stops early once more than a share ``allowed`` of all planned
    ticks is late.
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
    """A context that counts in ``values`` how the system interrupted this process meanwhile."""

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
    """How often and for how many ms this container was throttled.

    Read from the first of ``files`` that exists; empty if none does.
    """
    for path in files:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts = {name: int(value) for name, value in (line.split() for line in lines)}
        found = {"throttled": counts["nr_throttled"]} if "nr_throttled" in counts else {}
        if "throttled_usec" in counts:
            found["throttled_ms"] = counts["throttled_usec"] // 1000
        elif "throttled_time" in counts:
            found["throttled_ms"] = counts["throttled_time"] // 1_000_000
        return found
    return {}
