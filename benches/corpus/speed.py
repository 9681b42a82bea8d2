"""Speed and codes of our work queue, beside transformers clip by clip and in padded batches."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch

from benches.corpus.clips import cut_clips, read
from benches.record import Record
from benches.rivals import BANDWIDTH, model_for
from encodec_rt.corpus.clips import CorpusClip, Treatment, feeds
from encodec_rt.corpus.slots import Coded, clip_encoder
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes

BATCH = 16


def ours(codec: Codec, paths: list[Path]) -> list[Codes]:
    """The codes from our work queue, including reading the files."""
    encoder = clip_encoder(codec, BANDWIDTH)
    clips = [CorpusClip(str(path), str(path), lambda path=path: path) for path in paths]  # type: ignore[misc]
    opened = [feeds(clip, Treatment(), codec.config)[0] for clip in clips]
    found: dict[str, Codes] = {}
    for feed, outcome in encoder.encode(opened):
        assert isinstance(outcome, Coded), outcome
        found[feed.id] = outcome.codes
    return [found[str(path)] for path in paths]


def one_by_one(model: Any, paths: list[Path]) -> list[Codes]:
    """The codes from a transformers model, or from our offline model, clip by clip."""
    found = []
    for path in paths:
        audio = torch.from_numpy(read(path))[None, None]
        codes = model.encode(audio, bandwidth=BANDWIDTH).audio_codes[0, 0]
        found.append(codes.T.numpy().astype(np.uint16))
    return found


def padded(model: Any, paths: list[Path]) -> list[Codes]:
    """The codes from a transformers model in batches, padded and masked as its processor does."""
    found = []
    hop = model.config.hop_length
    for begin in range(0, len(paths), BATCH):
        clips = [read(path) for path in paths[begin : begin + BATCH]]
        longest = max(map(len, clips))
        audio = torch.zeros(len(clips), 1, longest)
        mask = torch.zeros(len(clips), longest, dtype=torch.bool)
        for row, clip in enumerate(clips):
            audio[row, 0, : len(clip)] = torch.from_numpy(clip)
            mask[row, : len(clip)] = True
        codes = model.encode(audio, mask, bandwidth=BANDWIDTH).audio_codes[0]
        for row, clip in enumerate(clips):
            found.append(codes[row].T[: -(-len(clip) // hop)].numpy().astype(np.uint16))
    return found


def frames_that_differ(given: list[Codes], wanted: list[Codes]) -> int:
    """The number of frames whose codes differ, or that are missing or extra."""
    total = 0
    for one, other in zip(given, wanted, strict=True):
        both = min(len(one), len(other))
        total += int((one[:both] != other[:both]).any(axis=1).sum()) + abs(len(one) - len(other))
    return total


def speed(record: Record, source: str | None, folder: Path, options: argparse.Namespace) -> None:
    """Time our queue, the offline model and transformers on the same clips, in turns.

    ``source`` is as for ``from_pretrained``, or None for the paper's architecture with random
    weights.
    """
    from tests.support.contract import assert_codes_agree
    from tests.support.models import hf_twin

    codec = Codec(model_for(source), backend="cpu")
    paths = cut_clips(folder / "speed", options.clips)
    seconds = sum(soundfile.info(path).duration for path in paths)
    model = codec.model
    twin = hf_twin(model)
    works: dict[str, Callable[[], list[Codes]]] = {
        "queue": lambda: ours(codec, paths),
        "offline": lambda: one_by_one(model, paths),
        "transformers": lambda: one_by_one(twin, paths),
        "transformers padded": lambda: padded(twin, paths),
    }
    spent: dict[str, list[float]] = {name: [] for name in works}
    codes: dict[str, list[Codes]] = {}
    for _ in range(options.rounds):
        for name, work in works.items():
            began = time.process_time()
            codes[name] = work()
            spent[name].append(time.process_time() - began)
    pace = {name: seconds / median(taken) for name, taken in spent.items()}
    excused = sum(
        assert_codes_agree(model, torch.from_numpy(read(path))[None], given, wanted)
        for path, given, wanted in zip(paths, codes["queue"], codes["offline"], strict=True)
    )
    values: dict[str, Any] = {f"{name} times real time": each for name, each in pace.items()}
    values["over transformers one by one"] = pace["queue"] / pace["transformers"]
    values["over transformers padded"] = pace["queue"] / pace["transformers padded"]
    values["frames"] = sum(map(len, codes["offline"]))
    for name in ("queue", "transformers", "transformers padded"):
        values[f"{name} frames that differ"] = frames_that_differ(codes[name], codes["offline"])
    values["queue near-ties in float64"] = excused
    case = {
        "what": "speed",
        "model": source or "paper, random weights",
        "clips": len(paths),
        "seconds": round(seconds, 1),
        "threads": 1,
    }
    record.add(
        case,
        {name: [1e3 * one for one in each] for name, each in spent.items()},
        values=values,
        deadline_ms=None,
    )
