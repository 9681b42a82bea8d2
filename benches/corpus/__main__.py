"""Whole corpora: speed beside transformers, two processes beside one, memory, kills, Ray.

    python -m benches.corpus PART...

Each part takes less than ten minutes on two idle cores; all parts of a call go into one record.
The corpus is the bundled speech, cut into clips of 0.3 to 12 s, as FLAC at 24 kHz; "hour" has one
long clip instead, "many" has WAV clips of 20 ms. Speeds are in seconds of audio per second of CPU
time on one thread, as medians of interleaved rounds; wall times are the best of some rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benches.corpus import runs
from benches.corpus.speed import speed
from benches.record import RESULTS, Record

Part = Callable[[Record, Path, argparse.Namespace], None]


def _speed(source: str | None) -> Part:
    return lambda record, folder, options: speed(record, source, folder, options)


PARTS: dict[str, Part] = {
    "speed": _speed("default"),
    "speed-paper": _speed(None),
    "pool": runs.pool,
    "hour": runs.hour,
    "many": runs.many,
    "kills-parquet": partial(runs.kills, sink="parquet"),
    "kills-webdataset": partial(runs.kills, sink="webdataset"),
    "kills-npz": partial(runs.kills, sink="npz"),
    "ray": runs.ray,
}


def main() -> None:
    """Measure the parts asked for, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "parts", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hour-s", type=int, default=3600, help="seconds of the long clip")
    parser.add_argument("--short-clips", type=int, default=100_000)
    parser.add_argument(
        "--ray-clips", type=int, default=5_000, help="about ten minutes of CPU time"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("corpus", folder=options.out)
    if options.note:
        record.add({"note": options.note})
    with torch.inference_mode():
        for part in options.parts:
            before = len(record.cases)
            with tempfile.TemporaryDirectory(prefix="corpus") as folder:
                PARTS[part](record, Path(folder), options)
            print(record.table(record.cases[before:]), flush=True)
    print(record.write().name)


if __name__ == "__main__":
    main()
