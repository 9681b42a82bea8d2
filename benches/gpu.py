"""The engine on a GPU: how long one frame takes, and how many streams keep their deadline.

    python -m benches.gpu {latency,rivals,streams} [--budget 100]

``latency``: one stream's frame, flat out, at the pace of a microphone, and with the device's cache
emptied before each frame. ``rivals``: the same, flat out, against what takes long to compile.
``streams``: the most streams whose ticks keep the deadline. Wall clock runs from audio on the host
to codes that the host can read, and back; device time around one replay that follows others.

Rows take turns, twice. Nothing is timed before the codes of a row are those of the plain-torch
rows; a row that cannot be made, is wrong, or takes too long is in the record with the reason. The
record is written after every case, so that a run that dies keeps what it measured.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor
from triton.errors import TritonError

from benches.kernels import NotRight, finish, ieee_products, require_cuda
from benches.record import RESULTS, Json, Record
from benches.rows import LATENCY, RIVALS, STREAMS, Contender, Row, bandwidth_kbps, torch_engine
from benches.workload import frames, noise, random_24khz
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.ops import Precision

FRAME_MS = 1000 / 75
FEWEST, LARGEST = 256, 65_536
CHECKED_STREAMS = 64
FIRST_SHARE = 0.8
"""Of the time for many streams that the first row gets, which is what a claim is made of."""
FLAT_OUT = ((False, False),)
LIVE = ((False, True), (True, False))
"""Conditions: whether frames come at a microphone's pace, and whether the cache is emptied."""
FLUSH_BYTES = 256 << 20
FLIPS_ALLOWED: dict[Precision, float] = {"exact": 1e-3, "fast": 1.0}
"""Share of frames whose codes may differ from the plain-torch rows': near-ties, or any."""

CHECKED_FRAMES = 300
AT_ONCE = 4
"""Replays before the one that is timed on the device, so that no launch is waited for."""

FAILURES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TritonError,
    TypeError,
    ValueError,
)
"""What somebody else's compiler, or a launch that the device refuses, may raise: noted, and on."""


@dataclass(frozen=True)
class Limits:
    """How long each part of a run may take: seconds, or frames."""

    row_s: float = 60.0
    run_s: float = 4.0
    frames: int = 5000
    live_frames: int = 500
    device_frames: int = 1000
    streams_s: float = 60.0
    ticks: int = 300


class Budget:
    """The seconds that a part of the bench has in all."""

    def __init__(self, seconds: float) -> None:
        """They run from now on."""
        self._end = time.perf_counter() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """Seconds that are left, and no more than ``at_most``."""
        return max(0.0, min(at_most, self._end - time.perf_counter()))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs inside once ``seconds`` have passed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in the {seconds:.0f} s it had")

    handler = signal.signal(signal.SIGALRM, stop)
    begun = time.perf_counter()
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        left = left and max(1e-3, left - (time.perf_counter() - begun))
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def note(
    record: Record,
    case: Mapping[str, Json],
    timings_ms: Mapping[str, Sequence[float]] | None = None,
    **values: Json,
) -> None:
    """Add a case with all its samples, print it, and write what there is so far."""
    timed = {name: samples for name, samples in (timings_ms or {}).items() if samples}
    added = record.add(case, timed, values=values, deadline_ms=FRAME_MS, keep_samples=True)
    print(record.table([added]), flush=True)
    record.save()


def codes_of(runner: Contender, audio: Tensor, hop: int) -> Tensor:
    """Codes [frames, S, Q] of [S, n] audio."""
    return torch.stack([runner.encode(pcm).cpu().clone() for pcm in frames(audio, hop)])


def offline_codes(model: EncodecModel, audio: Tensor) -> Tensor:
    """Codes [frames, S, Q] that the offline model gives each frame of [S, n] audio on its own."""
    parts = frames(audio, model.config.hop_length)
    latents = [model.encoder(pcm[:, None]) for pcm in parts]
    kbps = bandwidth_kbps(model)
    return torch.stack([model.quantizer.encode(one, kbps)[:, :, 0].t() for one in latents])


def require_same_codes(given: Tensor, wanted: Tensor, precision: Precision) -> float:
    """The share of frames with other codes. Raises NotRight if ``precision`` allows fewer.

    A single near-tie is always allowed.
    """
    differing = (given != wanted).any(-1)
    share = float(differing.double().mean())
    if int(differing.sum()) > max(1.0, FLIPS_ALLOWED[precision] * differing.numel()):
        raise NotRight(
            f"{100 * share:.2f} % of the frames have other codes than plain torch gives; that is "
            "wrong, and is not timed"
        )
    return share


def ready(
    record: Record,
    rows: Sequence[Row],
    model: EncodecModel,
    device: torch.device,
    limits: Limits,
    budget: Budget,
) -> dict[Row, Contender]:
    """Those rows that can be made and are right, for one stream; of the others the record tells."""
    hop = model.config.hop_length
    audio = noise(1, CHECKED_FRAMES * hop)
    with torch.inference_mode():
        alone = offline_codes(model, audio)
    wanted = codes_of(torch_engine(model, 1, device, graph=False), audio, hop)
    runners = {}
    for row in rows:
        begun = time.perf_counter()
        try:
            with time_limit(budget.left(limits.row_s)):
                runner = row.make(model, 1, device)
                made_s = time.perf_counter() - begun
                expected = alone if row.stateless else wanted
                flips = require_same_codes(codes_of(runner, audio, hop), expected, row.precision)
                runner.decode(expected[0])
        except FAILURES as error:
            _skip(record, row, error)
            continue
        note(record, {"check": "codes", **row.case}, flips=flips, seconds_to_make=made_s)
        runners[row] = runner
    return runners


def _skip(record: Record, row: Row, error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}".strip()[:500]
    note(record, {"skipped": row.name}, reason=reason, wrong=isinstance(error, NotRight))


def wall_ms(
    runner: Contender,
    audio: Tensor,
    hop: int,
    *,
    paced: bool = False,
    flush: Tensor | None = None,
    limit_s: float = float("inf"),
) -> tuple[list[float], list[float]]:
    """Milliseconds of each encode and decode of [S, n] audio on the host, frame by frame.

    ``flush``, as large as the device's cache or larger, empties it first. Stops after ``limit_s``.
    """
    encoding, decoding = [], []
    due = begun = time.perf_counter()
    for pcm in frames(audio, hop):
        if time.perf_counter() - begun > limit_s:
            break
        if flush is not None:
            flush.zero_()
            torch.cuda.synchronize()
        if paced:
            due += FRAME_MS / 1000
            _wait_until(due)
        start = time.perf_counter()
        codes = runner.encode(pcm)
        between = time.perf_counter()
        runner.decode(codes)
        end = time.perf_counter()
        encoding.append(1e3 * (between - start))
        decoding.append(1e3 * (end - between))
    return encoding, decoding


def _wait_until(due: float) -> None:
    """Sleep, then spin for the last half millisecond, which a sleep may overrun."""
    while (left := due - time.perf_counter()) > 0:
        if left > 1e-3:
            time.sleep(left - 5e-4)


def one_stream(
    record: Record,
    runners: Mapping[Row, Contender],
    hop: int,
    conditions: Sequence[tuple[bool, bool]],
    device: torch.device,
    limits: Limits,
    budget: Budget,
) -> None:
    """Latency of one frame of one stream, rows taking turns in every (paced, cold) condition."""
    for row, runner in runners.items():
        _device_time(record, row, runner, limits)
    flush = torch.zeros(FLUSH_BYTES // 4, device=device)
    for (paced, cold), turn in itertools.product(conditions, range(2)):
        everyone = (paced, cold) in FLAT_OUT
        audio = noise(1, (limits.frames if everyone else limits.live_frames) * hop, seed=turn)
        limit_s = 2 * FRAME_MS / 1000 * limits.live_frames if paced else limits.run_s
        for row, runner in runners.items():
            if not everyone and not row.live:
                continue
            limit = budget.left(limit_s)
            encoding, decoding = wall_ms(
                runner, audio, hop, paced=paced, flush=flush if cold else None, limit_s=limit
            )
            case = {"slots": 1, "paced": paced, "cold": cold, "turn": turn}
            timings = {"encode wall": encoding, "decode wall": decoding}
            note(record, {**case, **row.case}, timings, whole=len(encoding) * hop == audio.shape[1])


def _device_time(record: Record, row: Row, runner: Contender, limits: Limits) -> None:
    timings = {}
    for name, tick in runner.ticks.items():
        if tick.eager_because is None:
            timings[f"{name} device"] = _replay_ms(tick.again, limits.device_frames)
    if timings:
        note(record, {"slots": 1, **row.case}, timings)


def _replay_ms(replay: Callable[[], None], count: int) -> list[float]:
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(AT_ONCE):
            replay()
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def many_streams(
    record: Record,
    row: Row,
    model: EncodecModel,
    device: torch.device,
    limits: Limits,
    budget: Budget,
) -> None:
    """The most slots, by doubling, whose ticks keep the deadline; then as long as there is time."""
    hop = model.config.hop_length
    audio = noise(CHECKED_STREAMS, 20 * hop)
    wanted = codes_of(torch_engine(model, CHECKED_STREAMS, device, graph=False), audio, hop)
    flips = require_same_codes(
        codes_of(row.make(model, CHECKED_STREAMS, device), audio, hop), wanted, row.precision
    )
    note(record, {"check": "codes", "slots": CHECKED_STREAMS, **row.case}, flips=flips)
    kept, slots = 0, FEWEST
    while slots <= LARGEST and budget.left() > 0:
        try:
            runner = row.make(model, slots, device)
        except FAILURES as error:
            _skip(record, row, error)
            break
        ticks = _ticks(runner, noise(slots, 4 * hop), hop, limits.ticks, budget.left(limits.run_s))
        note(record, {"slots": slots, "paced": False, **row.case}, {"tick": ticks})
        if max(ticks) > FRAME_MS:
            break
        kept, slots = slots, 2 * slots
    del runner
    while kept and budget.left() > 1:
        seconds = budget.left(limits.streams_s)
        runner = row.make(model, kept, device)
        ticks = _ticks(
            runner, noise(kept, 4 * hop), hop, int(75 * seconds), budget.left(), paced=True
        )
        note(
            record, {"slots": kept, "paced": True, "seconds": seconds, **row.case}, {"tick": ticks}
        )
        if sorted(ticks)[int(0.999 * (len(ticks) - 1))] < FRAME_MS:
            break
        kept //= 2


def _ticks(
    runner: Contender, audio: Tensor, hop: int, count: int, limit_s: float, *, paced: bool = False
) -> list[float]:
    """Milliseconds of ``count`` whole ticks, audio in to audio out, over and over the same."""
    inputs = frames(audio, hop)
    times: list[float] = []
    due = begun = time.perf_counter()
    while len(times) < count and (not times or time.perf_counter() - begun < limit_s):
        if paced:
            due += FRAME_MS / 1000
            _wait_until(due)
        start = time.perf_counter()
        runner.decode(runner.encode(inputs[len(times) % len(inputs)]))
        times.append(1e3 * (time.perf_counter() - start))
    return times


def measure(
    part: str,
    record: Record,
    model: EncodecModel,
    device: torch.device,
    limits: Limits,
    budget: Budget,
) -> None:
    """One part of the bench."""
    if part == "streams":
        for index, row in enumerate(STREAMS):
            last = index == len(STREAMS) - 1
            share = Budget(budget.left() * (1 if last else FIRST_SHARE))
            try:
                many_streams(record, row, model, device, limits, share)
            except FAILURES as error:
                _skip(record, row, error)
        return
    rows = LATENCY if part == "latency" else RIVALS
    runners = ready(record, rows, model, device, limits, budget)
    gc.collect()
    gc.freeze()
    gc.disable()
    conditions = FLAT_OUT if part == "rivals" else (*FLAT_OUT, *LIVE)
    one_stream(record, runners, model.config.hop_length, conditions, device, limits, budget)
    gc.enable()


def main() -> int:
    """Measure one part and write one JSON file; 1 if a row was not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=["latency", "rivals", "streams"])
    parser.add_argument("--budget", type=float, default=100.0, help="seconds for all of it")
    parser.add_argument("--out", default=RESULTS, help="another folder than benches/results")
    options = parser.parse_args()
    device = require_cuda()
    ieee_products()
    budget = Budget(options.budget)
    record = Record(f"gpu-{options.part}", device=device.type, folder=options.out)
    measure(options.part, record, random_24khz(), device, Limits(), budget)
    return finish(record)


if __name__ == "__main__":
    sys.exit(main())
