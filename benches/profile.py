"""Every kernel and copy of a replay on the device: how long it runs, and how much it adds.

A chained kernel starts long before the previous one has ended, and waits for it. What a launch adds
is the time from the end of the previous launch to its own end.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benches.checks import note
from benches.record import Record
from benches.rows import Contender, Row

REPLAYS = 20


def timeline(replay: Any, device: torch.device) -> list[tuple[str, float, float]]:
    """For each launch its name, and the microseconds that it runs and adds: medians of replays.

    Empty if the profiler did not see every replay completely.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    for _ in range(3):
        replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(REPLAYS):
            replay()
            torch.cuda.synchronize()
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and event.name != "Activity Buffer Request"
    )
    count, rest = divmod(len(events), REPLAYS)
    if not count or rest:
        return []
    found = []
    for at in range(count):
        runs = events[at::count]
        took = [end - begin for begin, end, _ in runs]
        before = [events[index - 1][1] for index in range(at, len(events), count)]
        adds = [run[1] - end for run, end in zip(runs, before, strict=True)] if at else took
        found.append((runs[0][2], statistics.median(took), statistics.median(adds)))
    return found


def profile(record: Record, row: Row, runner: Contender, slots: int, device: torch.device) -> None:
    """Record the launches of both directions of a row, in order."""
    for name, tick in runner.ticks.items():
        if tick.eager_because is not None:
            continue
        launches = timeline(tick.again, device)
        rows = [
            f"{at:2} {each[0][:40]:40} {each[1]:7.2f} {each[2]:6.2f}"
            for at, each in enumerate(launches)
        ]
        print("\n".join(rows))
        note(
            record,
            {"profile": name, "slots": slots, **row.case},
            launches=len(launches),
            replay_us=sum(adds for *_, adds in launches),
            order=[[each, round(took, 2), round(adds, 2)] for each, took, adds in launches],
        )
