"""Whole clips on one thread: blocks of frames with state, beside the offline packages.

    python -m benches.cpu_files [--seconds 10 60] [--model default]

Times are the best of a few interleaved rounds in one process. Memory is by how much a clip raises
the peak of resident memory, measured in a process of its own (on Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import torch

from benches.environment import memory_mib
from benches.record import RESULTS, Record
from benches.rivals import BANDWIDTH, Work, interleaved, model_for, upstreams
from benches.stream import speech
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.transcode import FILE_BLOCK_FRAMES


def whole_clips(
    model: EncodecModel, pcm: np.ndarray, codes: np.ndarray
) -> tuple[dict[str, Work], dict[str, Work]]:
    """Functions that encode ``pcm``, and that decode ``codes`` [frames, Q], by contender."""
    codec = Codec(model, backend="cpu")

    def stream(block_frames: int) -> np.ndarray:
        encoder = codec.stream_encoder(BANDWIDTH, start="exact", block_frames=block_frames)
        return np.concatenate([encoder.push(pcm), encoder.flush()])

    def back(block_frames: int) -> np.ndarray:
        decoder = codec.stream_decoder(BANDWIDTH, start="exact", block_frames=block_frames)
        return np.concatenate([decoder.push(codes), decoder.flush()])

    reference, hf = upstreams(model)
    clip = torch.from_numpy(pcm.copy())[None, None]
    theirs = torch.from_numpy(codes.T.astype(np.int64))[None]
    return {
        "blocks": lambda: stream(FILE_BLOCK_FRAMES),
        "frames": lambda: stream(1),
        "encodec": lambda: reference.encode(clip),
        "transformers": lambda: hf.encode(clip, bandwidth=BANDWIDTH),
    }, {
        "blocks": lambda: back(FILE_BLOCK_FRAMES),
        "frames": lambda: back(1),
        "encodec": lambda: reference.decode([(theirs, None)]),
        "transformers": lambda: hf.decode(theirs[None], [None]),
    }


def random_codes(model: EncodecModel, seconds: float) -> np.ndarray:
    """Random codes [frames, Q] for ``seconds`` of audio."""
    config = model.config
    shape = (int(seconds * config.frame_rate), config.codebooks_for(BANDWIDTH))
    return np.random.default_rng(0).integers(config.codebook_size, size=shape, dtype=np.uint16)


def files(record: Record, model: EncodecModel, options: argparse.Namespace) -> None:
    """Time clips of each length, whole."""
    for seconds in options.seconds:
        pcm = speech(Codec(model), seconds)[0]
        both = whole_clips(model, pcm, random_codes(model, seconds))
        for direction, works in zip(("encode", "decode"), both, strict=True):
            taken = interleaved(works, options.rounds, 1, warm=0)
            best = {name: min(values) for name, values in taken.items()}
            values = {f"{name} times real time": 1000 * seconds / ms for name, ms in best.items()}
            rival = min(best["encodec"], best["transformers"])
            values["blocks over the faster of the others"] = rival / best["blocks"]
            case = {"what": "file", "direction": direction, "seconds": seconds, "threads": 1}
            record.add(
                case | {"block_frames": FILE_BLOCK_FRAMES}, taken, values=values, deadline_ms=None
            )


def _peak_mib(source: str | None, name: str, direction: int, seconds: float) -> float:
    torch.set_num_threads(1)
    model = model_for(source)
    codec = Codec(model, backend="cpu")
    with torch.inference_mode():
        for length in (1.0, seconds):
            pcm, codes = speech(codec, length)[0], random_codes(model, length)
            work = whole_clips(model, pcm, codes)[direction][name]
            # Reset the peak, which so far is that of building the model.
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            before = memory_mib()
            work()
    return memory_mib("VmHWM") - before


def memory(record: Record, options: argparse.Namespace) -> None:
    """Measure by how much a clip raises the peak of resident memory, each in its own process."""
    context = multiprocessing.get_context("spawn")
    for seconds in options.seconds:
        for index, direction in enumerate(("encode", "decode")):
            values = {}
            for name in ("blocks", "encodec", "transformers"):
                with context.Pool(1) as pool:
                    found = pool.apply(_peak_mib, (options.model, name, index, seconds))
                values[f"{name} peak_mib"] = found
            case = {"what": "memory", "direction": direction, "seconds": seconds}
            record.add(case, values=values)


def main() -> None:
    """Time and weigh the clips asked for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=None, help="as for Codec.load; else random weights")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[10.0, 60.0], help="lengths of the clips"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="measure times only")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("cpu-files", folder=options.out)
    if options.note:
        record.add({"note": options.note})
    with torch.inference_mode():
        files(record, model_for(options.model), options)
    if not options.no_memory:
        memory(record, options)
    print(record.table(), flush=True)
    path = record.write()
    print(path.name)


if __name__ == "__main__":
    main()
