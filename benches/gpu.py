"""The engine on a GPU: how long one frame takes, and how many streams keep their deadline.

    python -m benches.gpu {smoke,latency,profile,streams,rivals,flips} [--budget 100]

``smoke``: the most important row beside plain torch, in half a minute. ``latency``: one stream's
frame, flat out, at the pace of a microphone, and with the device's cache flushed before each frame.
``profile``: every kernel of a replay. ``streams``: the most streams whose ticks keep the deadline.
``rivals``: one stream flat out, beside torch.compile and transformers. ``flips``: codes of speech
that differ from plain torch's, with trained weights. Wall time is from audio on the host to codes
on the host, and back.

A row is timed only if its codes are those of plain torch. A row that cannot be made, is wrong, or
takes too long is recorded with the reason. A row is timed as soon as it is ready, and the record is
saved after every case, so a run that dies keeps what it measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benches import streams
from benches.checks import FAILURES, codes_of, note, offline_codes, require_same_codes, skip
from benches.kernels import finish, ieee_products, require_cuda
from benches.profile import profile
from benches.record import RESULTS, Record
from benches.rows import (
    FLIPS,
    LATENCY,
    MAX_AUTOTUNE,
    RIVALS,
    SMOKE,
    STREAMS,
    Contender,
    Row,
    torch_engine,
)
from benches.timing import (
    FRAME_MS,
    TimeBudget,
    no_collection,
    replay_ms,
    time_limit,
    wall_ms,
)
from benches.workload import noise, random_24khz, speech
from encodec_rt.model.encodec import EncodecModel

FLUSH_BYTES = 256 << 20
CHECKED_FRAMES = 300
PROFILED_STREAMS = 1024


@dataclass(frozen=True)
class GpuLimits:
    """Limits for each part of a run, in seconds or frames."""

    row_s: float = 40.0
    run_s: float = 1.5
    frames: int = 3000
    live_frames: int = 500
    device_frames: int = 300
    device_s: float = 1.0


class OneStream:
    """Checks and times rows of one stream on one device, as long as time is left."""

    def __init__(
        self,
        record: Record,
        model: EncodecModel,
        device: torch.device,
        limits: GpuLimits,
        budget: TimeBudget,
    ) -> None:
        self.record, self.model, self.device = record, model, device
        self.limits, self.budget = limits, budget
        self.hop = model.config.hop_length
        self.audio = noise(1, CHECKED_FRAMES * self.hop)

    @cached_property
    def _wanted(self) -> Tensor:
        engine = torch_engine(self.model, 1, self.device, graph=False)
        return codes_of(engine, self.audio, self.hop)

    @cached_property
    def _alone(self) -> Tensor:
        with torch.inference_mode():
            return offline_codes(self.model, self.audio)

    def ready(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Contender]]:
        """Each row that can be made and is right; the others are recorded with the reason.

        Making a row may take its share of the remaining time, plus a fifth.
        """
        for index, row in enumerate(rows):
            expected = self._alone if row.stateless else self._wanted
            share_s = 1.2 * self.budget.left() / (len(rows) - index + 0.5)
            begun = time.perf_counter()
            try:
                with time_limit(min(share_s, self.limits.row_s)):
                    runner = row.make(self.model, 1, self.device)
                    seconds = time.perf_counter() - begun
                    given = codes_of(runner, self.audio, self.hop)
                    flips = require_same_codes(given, expected, row.precision)
                    runner.decode(expected[0])
            except FAILURES as error:
                skip(self.record, row, error)
                continue
            note(self.record, {"check": "codes", **row.case}, flips=flips, seconds_to_make=seconds)
            yield row, runner

    def device_time(self, row: Row, runner: Contender) -> None:
        """Time the replay of each direction on the device, if there is a graph."""
        timings = {
            f"{name} device": replay_ms(
                tick.again, self.limits.device_frames, self.budget.left(self.limits.device_s)
            )
            for name, tick in runner.ticks.items()
            if tick.eager_because is None
        }
        if timings:
            note(self.record, {"slots": 1, **row.case}, timings)

    def wall_time(
        self, row: Row, runner: Contender, *, paced: bool = False, cold: bool = False, turn: int = 0
    ) -> None:
        """Time frames on the host: flat out, at a microphone's pace, or with a cold cache."""
        few = paced or cold
        audio = noise(
            1, (self.limits.live_frames if few else self.limits.frames) * self.hop, seed=turn
        )
        flush = torch.zeros(FLUSH_BYTES // 4, device=self.device) if cold else None
        most_s = 1.1e-3 * FRAME_MS * self.limits.live_frames if paced else self.limits.run_s
        most_s = min(most_s, self.budget.left() / 4)
        limit_s = self.budget.left(most_s)
        encoding, decoding = wall_ms(
            runner, audio, self.hop, paced=paced, flush=flush, limit_s=limit_s
        )
        if not encoding:
            return
        case = {"slots": 1, "paced": paced, "cold": cold, "turn": turn, **row.case}
        whole = len(encoding) * self.hop == audio.shape[1]
        note(
            self.record,
            case,
            {"encode wall": encoding, "decode wall": decoding},
            whole=whole,
        )


def latency(bench: OneStream, rows: Sequence[Row] = LATENCY) -> None:
    """Time every row as soon as it is ready, then live rows paced and cold, then all rows again."""
    runners: dict[Row, Contender] = {}
    for row, runner in bench.ready(rows):
        runners[row] = runner
        bench.device_time(row, runner)
        with no_collection():
            bench.wall_time(row, runner)
    with no_collection():
        for paced, cold in ((True, False), (False, True)):
            for row in (row for row in runners if row.live):
                bench.wall_time(row, runners[row], paced=paced, cold=cold)
        for row, runner in runners.items():
            bench.wall_time(row, runner, turn=1)


def flips(
    record: Record,
    rows: Sequence[Row],
    model: EncodecModel,
    device: torch.device,
    budget: TimeBudget,
) -> None:
    """Record the share of frames of speech whose codes are not plain torch's, for each row.

    A row may take its share of the remaining time, plus a half.
    """
    audio, hop = speech(8), model.config.hop_length
    wanted = codes_of(torch_engine(model, len(audio), device, graph=False), audio, hop)
    for index, row in enumerate(rows):
        try:
            with time_limit(1.5 * budget.left() / (len(rows) - index + 0.5)):
                given = codes_of(row.make(model, len(audio), device), audio, hop)
                share = require_same_codes(given, wanted, row.precision)
        except FAILURES as error:
            skip(record, row, error)
            continue
        codes = float((given != wanted).double().mean())
        note(
            record,
            {"check": "speech", **row.case},
            frames=wanted[..., 0].numel(),
            frames_that_differ=share,
            codes_that_differ=codes,
        )


def measure(
    part: str,
    record: Record,
    device: torch.device,
    limits: GpuLimits,
    budget: TimeBudget,
    *,
    max_autotune: bool = False,
) -> None:
    """Run one part of the bench."""
    if part == "flips":
        flips(record, FLIPS, trained(), device, budget)
        return
    model = random_24khz()
    if part == "streams":
        streams.measure(record, model, device, streams.StreamLimits(), budget)
        return
    bench = OneStream(record, model, device, limits, budget)
    if part == "profile":
        for row, runner in bench.ready((*SMOKE, *STREAMS)):
            if row in STREAMS:
                runner = row.make(model, PROFILED_STREAMS, device)
            profile(record, row, runner, PROFILED_STREAMS if row in STREAMS else 1, device)
        return
    chosen: Mapping[str, Sequence[Row]] = {"smoke": SMOKE, "latency": LATENCY, "rivals": RIVALS}
    latency(bench, (*chosen[part], MAX_AUTOTUNE) if max_autotune else chosen[part])


def trained() -> EncodecModel:
    """The embedded model."""
    return EncodecModel.from_pretrained("default").eval()


def main() -> int:
    """Measure one part and write one JSON file; 1 if a row was not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = ["smoke", "latency", "profile", "streams", "rivals", "flips"]
    parser.add_argument("part", choices=parts)
    parser.add_argument("--budget", type=float, default=100.0, help="seconds in all")
    parser.add_argument(
        "--max-autotune", action="store_true", help="of the part rivals; takes minutes"
    )
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    device = require_cuda()
    ieee_products()
    budget = TimeBudget(options.budget)
    record = Record(f"gpu-{options.part}", device=device.type, folder=options.out)
    autotune = options.max_autotune
    measure(options.part, record, device, GpuLimits(), budget, max_autotune=autotune)
    return finish(record)


if __name__ == "__main__":
    sys.exit(main())
