"""One CPU core: what a frame costs beyond its matrix products, many streams, start-up.

    python -m benches.cpu [live paced slots startup] [--model default]

All contenders take turns in one process on one thread, so a busy machine slows all of them. The
lower bound is the bare chain of the frame's matrix products with the same packed weights: no
biases, no ELU, no state. ``encodec`` and transformers cannot stream; they are timed on single
frames, which gives other codes. Without --model the architecture is that of the paper's 24 kHz
model with random weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benches.cpu_paced import paced
from benches.environment import ROOT
from benches.record import RESULTS, Record
from benches.rivals import BANDWIDTH, FRAME_MS, Work, interleaved, model_for, upstreams
from benches.stream import speech
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.plan import ConvSpec, ConvTransposeSpec, LstmSpec
from encodec_rt.streaming.steps import PackedLayers

Item = TypeVar("Item")


def products(net: PackedLayers, rows: int, searches: tuple[Tensor, ...] = ()) -> Work:
    """The matrix products of one frame through ``net``, whose input has ``rows`` time steps."""
    chain: list[tuple[int, Tensor]] = []
    for spec in net.plan:
        packed = net.packed[spec.name]
        if isinstance(spec, ConvSpec):
            rows //= spec.stride
            chain.append((rows, packed[0].reshape(-1, spec.out_channels)))
        elif isinstance(spec, ConvTransposeSpec):
            chain.append((rows, packed[0]))
            rows *= spec.stride
        elif isinstance(spec, LstmSpec):
            chain += [(1, weight) for weight in packed[:: len(packed) // spec.layers]]
        else:
            chain += [(rows, weight) for weight in packed[::2]]
    chain += [(1, search) for search in searches]
    calls = [
        (torch.randn(height, weight.shape[0]), weight, torch.empty(height, weight.shape[1]))
        for height, weight in chain
    ]

    def work() -> None:
        for left, right, out in calls:
            torch.mm(left, right, out=out)

    return work


def per_frame(model: EncodecModel, pcm: np.ndarray) -> tuple[dict[str, Work], dict[str, Work]]:
    """Functions that encode, and functions that decode, the next frame, by contender."""
    encode: dict[str, Work] = {}
    decode: dict[str, Work] = {}
    frames = [pcm[at : at + 320] for at in range(0, len(pcm) - 319, 320)]

    def turns(call: Callable[[Item], object], items: list[Item]) -> Work:
        state = {"at": 0}

        def work() -> object:
            state["at"] += 1
            return call(items[state["at"] % len(items)])

        return work

    codes = Codec(model, backend="cpu").stream_encoder(BANDWIDTH).push(pcm)
    rows: dict[str, Codec] = {
        "cpu": Codec(model, backend="cpu"),
        "cpu, fast": Codec(model, backend="cpu", precision="fast"),
        "torch": Codec(model, backend="torch"),
    }
    for name, codec in rows.items():
        if name == "cpu":
            packed = codec.packed
            searches = packed.codebooks[: 2 * codes.shape[1] : 2]
            encode["products"] = products(packed.encoder, 320, searches)
            decode["products"] = products(packed.decoder, 1)
        encode[name] = turns(codec.stream_encoder(BANDWIDTH).push, list(frames))
        decode[name] = turns(codec.stream_decoder(BANDWIDTH).push, [row[None] for row in codes])
    reference, hf = upstreams(model)
    tensors = [torch.from_numpy(frame.copy())[None, None] for frame in frames]
    theirs = [torch.from_numpy(row.astype(np.int64))[None, :, None] for row in codes]
    encode["encodec"] = turns(reference.encode, list(tensors))
    decode["encodec"] = turns(reference.decode, [[(row, None)] for row in theirs])
    encode["transformers"] = turns(lambda x: hf.encode(x, bandwidth=BANDWIDTH), list(tensors))
    decode["transformers"] = turns(
        lambda row: hf.decode(row, [None]), [row[None] for row in theirs]
    )
    return encode, decode


def ratios(taken: dict[str, list[float]], ours: str, floor: str) -> dict[str, float]:
    """The ratios of medians between ``ours`` and all others, and of our p99 to our p50."""
    median = {name: float(np.median(values)) for name, values in taken.items()}
    found = {f"{ours} over {floor}": median[ours] / median[floor]}
    found |= {
        f"{name} over {ours}": median[name] / median[ours]
        for name in taken
        if name not in (ours, floor)
    }
    found[f"{ours} p99 over p50"] = float(np.percentile(taken[ours], 99)) / median[ours]
    return found


def live(record: Record, model: EncodecModel, options: argparse.Namespace) -> None:
    """Time one frame with every contender, in turns."""
    pcm = speech(Codec(model), 20.0)[0]
    for direction, works in zip(("encode", "decode"), per_frame(model, pcm), strict=True):
        taken = interleaved(works, options.rounds, 25)
        record.add(
            {"what": "frame", "direction": direction, "threads": 1},
            taken,
            values=ratios(taken, "cpu", "products"),
            deadline_ms=FRAME_MS,
        )


def slots(record: Record, model: EncodecModel, options: argparse.Namespace) -> None:
    """Time an engine of S streams; a tick encodes and decodes a frame of each."""
    torch.set_num_threads(options.threads)
    codec = Codec(model, backend="cpu")
    pcm = torch.from_numpy(speech(codec, 20.0)[0].copy())
    for count in options.slots:
        engine = codec.engine(count, BANDWIDTH)
        frames = [pcm[at : at + 320 * count].view(count, 320) for at in range(0, 960, 320)]
        parts: dict[str, list[float]] = {"encode": [], "decode": [], "both": []}
        for index in range(3 + options.ticks):
            begin = time.perf_counter()
            codes = engine.encode(frames[index % len(frames)])
            middle = time.perf_counter()
            engine.decode(codes)
            end = time.perf_counter()
            if index >= 3:
                for name, span in zip(
                    parts, (middle - begin, end - middle, end - begin), strict=True
                ):
                    parts[name].append(1000 * span)
        record.add(
            {"what": "slots", "slots": count, "threads": options.threads},
            parts,
            values={
                "streams by p50": count * FRAME_MS / float(np.median(parts["both"])),
                "holds the deadline": float(np.percentile(parts["both"], 99)) <= FRAME_MS,
            },
            deadline_ms=FRAME_MS,
        )
    torch.set_num_threads(1)


STARTUP = """
import json, sys, time
begin = time.perf_counter(); import torch
torch.set_num_threads(1)
middle = time.perf_counter(); import encodec_rt
imported = time.perf_counter(); codec = encodec_rt.Codec.load(sys.argv[1])
loaded = time.perf_counter(); encoder = codec.stream_encoder(); decoder = codec.stream_decoder()
opened = time.perf_counter(); decoder.push(encoder.push(torch.zeros(codec.config.hop_length)))
marks = [begin, middle, imported, loaded, opened, time.perf_counter()]
print(json.dumps([1000 * (b - a) for a, b in zip(marks, marks[1:])]))
"""


def startup(record: Record, model: EncodecModel, options: argparse.Namespace) -> None:
    """Time a new process from its imports to the first frame."""
    names = ("import torch", "import encodec_rt", "Codec.load", "open both streams", "first frame")
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            model.save_pretrained(folder)
        for _ in range(options.rounds // 4 + 2):
            command = [sys.executable, "-c", STARTUP, options.model or folder]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            for name, span in zip(names, json.loads(done.stdout), strict=True):
                taken[name].append(span)
    after = np.sum([taken[name] for name in names[2:]], axis=0)
    model_name = options.model or "encodec_24khz, random weights"
    record.add(
        {"what": "startup", "model": model_name}, taken | {"load to first frame": after.tolist()}
    )


PARTS = {
    "live": live,
    "paced": paced,
    "slots": slots,
    "startup": startup,
}


def main() -> None:
    """Time the parts asked for, and write one JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--model", default=None, help="as for Codec.load; else random weights")
    parser.add_argument(
        "--rounds", type=int, default=20, help="of 25 frames each; and a quarter as many start-ups"
    )
    parser.add_argument("--frames", type=int, default=10_000, help="of the part paced")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--ticks", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2, help="of the part slots")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = model_for(options.model)
    for name in options.parts or PARTS:
        record = Record(f"cpu-{name}", folder=options.out)
        if options.note:
            record.add({"note": options.note})
        with torch.inference_mode():
            PARTS[name](record, model, options)
        print(record.table(record.cases), flush=True)
        path = record.write()
        print(path.name)


if __name__ == "__main__":
    main()
