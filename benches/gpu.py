"""The engine on a GPU: how long one frame takes, and how many streams keep their deadline.

    python -m benches.gpu [--seconds 60] [--frames 10000]

Wall clock runs from audio on the host to codes that the host can read, and back. One frame is timed
flat out, at the pace of a microphone, and with the device's cache emptied before each frame. Rows
take turns, twice. Nothing is timed before the codes of a row are those of the plain-torch rows.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benches.kernels import device_ms, require_cuda
from benches.record import Json, Record
from benches.workload import frames, noise, random_24khz
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends import Precision
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine

FRAME_MS = 1000 / 75
HOP = 320
LARGEST = 65_536
FLUSH_BYTES = 256 << 20
FLIPS_ALLOWED: dict[Precision, float] = {"exact": 1e-3, "fast": 1.0}
"""Share of frames whose codes may differ from the plain-torch rows': near-ties, or any."""


@dataclass(frozen=True)
class Row:
    """One way to run the codec."""

    backend: str
    precision: Precision
    graph: bool

    @property
    def case(self) -> dict[str, Json]:
        """How a record names it."""
        return {"backend": self.backend, "precision": self.precision, "graph": self.graph}

    def engine(self, model: EncodecModel, slots: int) -> Engine:
        """An engine of that many slots at 6 kbps; a graph that cannot be had is an error."""
        codec = Codec(model, device="cuda", backend=self.backend, precision=self.precision)
        return codec.engine(slots, 6.0, start="zero", graph=self.graph)


ROWS = (
    Row("triton", "exact", True),
    Row("triton", "fast", True),
    Row("torch", "exact", True),
    Row("torch", "exact", False),
)


def codes_of(engine: Engine, audio: Tensor) -> Tensor:
    """Codes [frames, S, Q] of [S, n] audio."""
    return torch.stack([engine.encode(pcm).cpu().clone() for pcm in frames(audio)])


def require_same_codes(given: Tensor, wanted: Tensor, precision: Precision) -> float:
    """The share of frames with another code. Exits if it is more than ``precision`` allows."""
    share = float((given != wanted).any(-1).double().mean())
    if share > FLIPS_ALLOWED[precision]:
        raise SystemExit(
            f"{100 * share:.2f} % of the frames have other codes than plain torch gives; an engine "
            "whose codes are wrong is not timed"
        )
    return share


def wall_ms(
    engine: Engine, audio: Tensor, *, paced: bool, flush: Tensor | None
) -> tuple[list[float], list[float]]:
    """Milliseconds of each encode and decode of [S, n] audio on the host, frame by frame."""
    encoding, decoding = [], []
    due = time.perf_counter()
    for pcm in frames(audio):
        if flush is not None:
            flush.zero_()
            torch.cuda.synchronize()
        if paced:
            due += FRAME_MS / 1000
            _wait_until(due)
        start = time.perf_counter()
        codes = engine.encode(pcm)
        between = time.perf_counter()
        engine.decode(codes)
        end = time.perf_counter()
        encoding.append(1e3 * (between - start))
        decoding.append(1e3 * (end - between))
    return encoding, decoding


def _wait_until(due: float) -> None:
    """Sleep, then spin for the last half millisecond, which a sleep may overrun."""
    while (left := due - time.perf_counter()) > 0:
        if left > 1e-3:
            time.sleep(left - 5e-4)


def one_stream(record: Record, engines: dict[Row, Engine], length: int) -> None:
    """Latency of one frame of one stream, in every condition, rows taking turns."""
    flush = torch.zeros(FLUSH_BYTES // 4, device="cuda")
    conditions = ((False, None, length), (True, None, length // 10), (False, flush, length // 10))
    for paced, emptied, count in conditions:
        for turn in range(2):
            audio = noise(1, count // 2 * HOP, seed=turn)
            for row, engine in engines.items():
                encoding, decoding = wall_ms(engine, audio, paced=paced, flush=emptied)
                case = {"slots": 1, "paced": paced, "cold": emptied is not None, "turn": turn}
                added = record.add(
                    {**case, **row.case},
                    {"encode wall": encoding, "decode wall": decoding},
                    deadline_ms=FRAME_MS,
                    keep_samples=True,
                )
                print(record.table([added]), flush=True)
    for row, engine in engines.items():
        pcm = noise(1, HOP).cuda()
        codes = engine.encode(pcm).clone()
        timings = {
            "encode device": device_ms(partial(engine.encode, pcm), 1000),
            "decode device": device_ms(partial(engine.decode, codes), 1000),
        }
        added = record.add({"slots": 1, **row.case}, timings, keep_samples=True)
        print(record.table([added]), flush=True)


def many_streams(record: Record, row: Row, model: EncodecModel, seconds: float) -> None:
    """The most slots, by doubling, whose ticks keep the deadline; then for ``seconds`` at pace."""
    kept, slots = 0, 256
    while slots <= LARGEST:
        ticks = _ticks(row.engine(model, slots), noise(slots, 8 * HOP), 300, paced=False)
        added = record.add(
            {"slots": slots, "paced": False, **row.case}, {"tick": ticks}, deadline_ms=FRAME_MS
        )
        print(record.table([added]), flush=True)
        if sorted(ticks)[-1] > FRAME_MS:
            break
        kept, slots = slots, 2 * slots
    if not kept:
        return
    engine = row.engine(model, kept)
    ticks = _ticks(engine, noise(kept, 8 * HOP), int(75 * seconds), paced=True)
    added = record.add(
        {"slots": kept, "paced": True, **row.case},
        {"tick": ticks},
        deadline_ms=FRAME_MS,
        keep_samples=True,
    )
    print(record.table([added]), flush=True)


def _ticks(engine: Engine, audio: Tensor, count: int, *, paced: bool) -> list[float]:
    """Milliseconds of ``count`` whole ticks, audio in to audio out, over and over the same."""
    inputs = frames(audio)
    times, due = [], time.perf_counter()
    for tick in range(count):
        if paced:
            due += FRAME_MS / 1000
            _wait_until(due)
        start = time.perf_counter()
        engine.decode(engine.encode(inputs[tick % len(inputs)]))
        times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Check every row, time it, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=10_000, help="of one stream, flat out")
    parser.add_argument("--seconds", type=float, default=60.0, help="of paced ticks of many")
    options = parser.parse_args()
    require_cuda()
    # The rows to compare with shall compute in float32 too; torch rounds convolutions to TF32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    model = random_24khz()
    record = Record("gpu", device="cuda")
    checked = noise(64, 20 * HOP)
    wanted = codes_of(Row("torch", "exact", False).engine(model, 64), checked)
    engines = {}
    for row in ROWS:
        flips = require_same_codes(codes_of(row.engine(model, 64), checked), wanted, row.precision)
        record.add({"check": "codes against plain torch", **row.case}, values={"flips": flips})
        engines[row] = row.engine(model, 1)
        wall_ms(engines[row], noise(1, 200 * HOP), paced=False, flush=None)
    gc.collect()
    gc.freeze()
    gc.disable()
    one_stream(record, engines, options.frames)
    for row in ROWS[:2]:
        many_streams(record, row, model, options.seconds)
    print(record.write().name)


if __name__ == "__main__":
    main()
