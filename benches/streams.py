"""The most streams whose ticks, from audio in to audio out, keep the deadline on a GPU.

Numbers of slots are a factor of 1.25 apart. Flat out, the p99 of a few hundred ticks decides; the
search first doubles, then bisects. Then the largest number that passed runs at a microphone's pace
for as long as there is time. There, 99.9 % of the ticks must end within a frame of the moment when
their audio was due, whatever delays them. A paced run that can no longer keep this is stopped, and
the next smaller number is tried.

On the first machine every paced run had stalls of 16 to 51 ms. To find their cause, the smallest
number first runs at pace with all of torch's threads and with one, and the better setting is kept.
``pace.py`` defines what each run records about its latest ticks and the system.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benches.checks import FAILURES, codes_of, note, require_same_codes, skip
from benches.pace import PacedRun, Pressure, paced
from benches.record import Record
from benches.rows import STREAMS, Contender, Row, torch_engine
from benches.timing import FRAME_MS, TimeBudget, no_collection
from benches.workload import frames, noise
from encodec_rt.model.encodec import EncodecModel

STEP = 1.25
FEWEST, LARGEST = 256, 65_536
CHECKED_STREAMS = 64
LATE_ALLOWED = 1e-3
"""Share of a paced run's ticks that may be late, as p99.9 implies."""
FIRST_SHARE = 0.7
"""Share of the time that the first row gets, since claims are made about that one."""
ENOUGH_S = 10.0
"""Seconds at pace that confirm a number of streams."""
PROBE_S = 3.0
"""Seconds of a run that only compares numbers of threads."""


@dataclass(frozen=True)
class StreamLimits:
    """Limits for one run."""

    flat_out_s: float = 3.0
    ticks: int = 200
    paced_s: float = 60.0


def sizes() -> list[int]:
    """Numbers of slots to try: a factor of 1.25 apart, rounded to multiples of 8."""
    count = 1 + int(math.log(LARGEST / FEWEST, STEP))
    return sorted({8 * round(FEWEST * STEP**each / 8) for each in range(count)})


def measure(
    record: Record,
    model: EncodecModel,
    device: torch.device,
    limits: StreamLimits,
    budget: TimeBudget,
) -> None:
    """Measure every row of STREAMS in its share of the time."""
    for index, row in enumerate(STREAMS):
        last = index == len(STREAMS) - 1
        share = TimeBudget(budget.left() * (1 if last else FIRST_SHARE))
        try:
            many_streams(record, row, model, device, limits, share)
        except FAILURES as error:
            skip(record, row, error)


def many_streams(
    record: Record,
    row: Row,
    model: EncodecModel,
    device: torch.device,
    limits: StreamLimits,
    budget: TimeBudget,
) -> None:
    """Find and confirm the most slots for one row; ``streams`` in the record is 0 if it failed."""
    hop = model.config.hop_length
    audio = noise(CHECKED_STREAMS, 20 * hop)
    wanted = codes_of(torch_engine(model, CHECKED_STREAMS, device, graph=False), audio, hop)
    given = codes_of(row.make(model, CHECKED_STREAMS, device), audio, hop)
    flips = require_same_codes(given, wanted, row.precision)
    note(record, {"check": "codes", "slots": CHECKED_STREAMS, **row.case}, flips=flips)

    def keeps_up(slots: int) -> bool:
        runner = row.make(model, slots, device)
        audio = noise(slots, 4 * hop)
        with no_collection():
            times = flat_out(runner, audio, hop, limits.ticks, budget.left(limits.flat_out_s))
        kept = share_over(times, FRAME_MS) <= 0.01
        values = {"streams": slots if kept else 0, "kept": kept}
        note(record, {"slots": slots, "paced": False, **row.case}, {"tick": times}, **values)
        return kept

    candidates = sizes()
    best = search(candidates, keeps_up, budget)
    if best >= 0:
        fewest = row.make(model, candidates[0], device)
        choose_threads(record, row, fewest, noise(candidates[0], 4 * hop), hop, budget)
        del fewest
    while best >= 0 and budget.left() > 1:
        slots = candidates[best]
        seconds = budget.left(limits.paced_s)
        runner = row.make(model, slots, device)
        if run_at_pace(record, row, runner, noise(slots, 4 * hop), hop, seconds).kept:
            return
        del runner
        best -= 1


def run_at_pace(
    record: Record,
    row: Row,
    runner: Contender,
    audio: Tensor,
    hop: int,
    seconds: float,
    allowed: float = LATE_ALLOWED,
) -> PacedRun:
    """Run [S, n] audio at pace for ``seconds``, or until a share over ``allowed`` is late."""
    with no_collection(), Pressure() as pressure:
        run = paced(runner, audio, hop, seconds, allowed, FRAME_MS)
    claims = run.kept and allowed <= LATE_ALLOWED
    note(
        record,
        {"slots": len(audio), "paced": True, **row.case},
        {"tick": run.ms},
        streams=len(audio) if claims else 0,
        kept=run.kept,
        confirmed=claims and seconds >= ENOUGH_S,
        seconds=len(run.ticks) * FRAME_MS / 1000,
        threads=torch.get_num_threads(),
        late=run.late,
        worst=run.worst(),
        **pressure.values,
    )
    return run


def choose_threads(
    record: Record, row: Row, runner: Contender, audio: Tensor, hop: int, budget: TimeBudget
) -> None:
    """Run at pace with torch's threads and with one, and keep the setting with fewer late ticks."""
    late: dict[int, int] = {}
    for threads in dict.fromkeys((torch.get_num_threads(), 1)):
        torch.set_num_threads(threads)
        seconds = budget.left(PROBE_S)
        late[threads] = run_at_pace(record, row, runner, audio, hop, seconds, allowed=1.0).late
    # On a tie the first wins: torch's own number.
    torch.set_num_threads(min(late, key=lambda threads: late[threads]))


def search(candidates: list[int], keeps_up: Callable[[int], bool], budget: TimeBudget) -> int:
    """The index of the largest candidate that keeps up, or -1: in steps of three, then bisecting.

    Three steps of 1.25 are about a doubling. Assumes that if one fails, all larger ones fail too.
    """
    low, high, at = -1, len(candidates), 0
    while at < len(candidates) and budget.left() > 0:
        try:
            kept = keeps_up(candidates[at])
        except FAILURES as error:
            # Usually because there is too little memory.
            print(f"{candidates[at]} slots: {type(error).__name__}: {error}"[:300], flush=True)
            kept = False
        low, high = (at, high) if kept else (low, at)
        if high - low <= 1:
            break
        at = (low + high) // 2 if high < len(candidates) else min(low + 3, len(candidates) - 1)
    return low


def share_over(times: list[float], limit: float) -> float:
    """The share of ``times`` over ``limit``."""
    return sum(each > limit for each in times) / len(times)


def flat_out(runner: Contender, audio: Tensor, hop: int, count: int, limit_s: float) -> list[float]:
    """The ms of each of ``count`` ticks, audio in to audio out; fewer after ``limit_s``."""
    inputs = frames(audio, hop)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < count and (not times or time.perf_counter() - begun < limit_s):
        start = time.perf_counter()
        runner.decode(runner.encode(inputs[len(times) % len(inputs)]))
        times.append(1e3 * (time.perf_counter() - start))
    return times
