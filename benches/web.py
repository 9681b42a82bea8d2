"""The WebAssembly codec beside the CPU backend: CPU time per frame, and a check of the codes.

    python -m benches.web [--model default] [--frames 900] [--record]

Blocks of frames go in turn through the CPU backend, through wasmtime in this process, and through
V8 in Node, so a busy machine slows all of them. CPU time is measured rather than wall time, which
on a shared machine is mostly waiting. Without --model the architecture is that of the paper's
24 kHz model with random weights. No time is printed if the codes differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benches.environment import ROOT
from benches.record import Record
from benches.rivals import BANDWIDTH, model_for
from benches.stream import speech
from encodec_rt.export.blob import blob
from encodec_rt.portable import PortableCodec
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio

BLOCK = 60
WARM_UP = 60
WASM = ROOT / "encodec_rt" / "web" / "codec" / "codec.wasm"


def python_block(encoder: Any, decoder: Any, audio: Audio, hop: int) -> dict[str, Any]:
    """CPU milliseconds of each frame of ``audio``, and the codes."""
    made: dict[str, Any] = {"encode": [], "decode": [], "codes": []}
    for frame in audio.reshape(-1, hop):
        start = time.thread_time()
        codes = encoder.push(frame)
        middle = time.thread_time()
        decoder.push(codes)
        made["encode"].append(1e3 * (middle - start))
        made["decode"].append(1e3 * (time.thread_time() - middle))
        made["codes"].append(codes[0].tolist())
    return made


def main() -> None:
    """Time all three, check their codes, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--frames", type=int, default=900)
    parser.add_argument("--record", action="store_true", help="write the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = model_for(arguments.model)
    content = blob(model)
    codec, portable = Codec(model), PortableCodec(content)
    hop, books = codec.config.hop_length, codec.config.codebooks_for(BANDWIDTH)
    frames = arguments.frames // BLOCK * BLOCK
    audio = speech(codec, frames * hop / codec.config.sampling_rate)[0]
    record = Record("web")
    streams = {
        name: (of.stream_encoder(BANDWIDTH), of.stream_decoder(BANDWIDTH))
        for name, of in (("cpu backend", codec), ("wasmtime", portable))
    }
    rows: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "model.bin", Path(folder) / "pcm.f32"]
        files[0].write_bytes(content)
        files[1].write_bytes(audio.astype("<f4").tobytes())
        script = Path(__file__).with_name("timed_frames.mjs")
        command = ["node", str(script), str(WASM), *map(str, files), str(books)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as node:
            assert node.stdin is not None
            assert node.stdout is not None
            for at in range(0, frames, BLOCK):
                piece = audio[at * hop : (at + BLOCK) * hop]
                for name, (encoder, decoder) in streams.items():
                    for part, values in python_block(encoder, decoder, piece, hop).items():
                        rows[name][part] += values
                node.stdin.write(f"{at} {BLOCK}\n")
                for part, values in json.loads(node.stdout.readline()).items():
                    rows["V8"][part] += values
            node.stdin.close()
    wanted = rows["cpu backend"]["codes"]
    medians: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        different = int(np.sum(np.array(row["codes"]) != np.array(wanted)))
        if different:
            raise SystemExit(f"{name}: {different} codes differ; no times are printed")
        timings = {part: row[part][WARM_UP:] for part in ("encode", "decode")}
        timings["both"] = [sum(pair) for pair in zip(*timings.values(), strict=True)]
        medians[name] = {part: float(np.median(values)) for part, values in timings.items()}
        ratios = {
            f"{part} to cpu backend": medians[name][part] / medians["cpu backend"][part]
            for part in timings
        }
        values = {"codes": int(np.size(wanted)), "different": 0, **ratios}
        record.add({"model": codec.name, "runs in": name}, timings, values=values)
    print(record.table())
    if arguments.record:
        print(record.write())


if __name__ == "__main__":
    main()
