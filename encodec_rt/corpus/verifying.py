"""Verifying: encode a sample of clips again, one by one, and compare with what was stored."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from encodec_rt.corpus.clips import Feed, feeds
from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.rows import StoredClip
from encodec_rt.corpus.sinks import suffix_of
from encodec_rt.corpus.sources import clips_of
from encodec_rt.corpus.stored import read_rows
from encodec_rt.corpus.units import Unit
from encodec_rt.corpus.work import Settings
from encodec_rt.errors import CodecError
from encodec_rt.streaming.codec import Codec
from encodec_rt.transcode import encode_blocks

SEED = 0


def verify_sample(
    folder: OutputFolder,
    settings: Settings,
    codec: Codec,
    datasets: Mapping[str, Any],
    count: int,
) -> dict[str, Any]:
    """Encode ``count`` clips, or all if there are fewer, as streams of their own, and compare.

    -> clips, frames, frames that ``differ``, and the ``ids`` of the clips that have some. Only
    frames in which two vectors are practically equidistant may differ.
    """
    wanted = _chosen([record["clips"] for record in folder.records()], count)
    clips = frames = differ = 0
    ids = []
    for unit in folder.units():
        if unit.index not in wanted:
            continue
        stored = _stored(folder, settings, codec, unit, wanted[unit.index])
        for feed in _feeds(unit, settings, codec, datasets):
            row = stored.pop(feed.id, None)
            if row is None:
                continue
            changed = _frames_that_differ(feed, row, settings, codec)
            clips, frames, differ = clips + 1, frames + len(row.codes), differ + changed
            ids += [feed.id] * bool(changed)
            if not stored:
                break
        ids += sorted(stored)  # stored, and not in the source any more
    return {"clips": clips, "frames": frames, "differ": differ, "ids": ids}


def _chosen(clips: list[int], count: int) -> dict[int, set[int]]:
    """Numbers of clips for each unit that has any, drawn evenly from all of them."""
    total = sum(clips)
    picks = sorted(random.Random(SEED).sample(range(total), min(count, total)))
    found: dict[int, set[int]] = defaultdict(set)
    unit = before = 0
    for pick in picks:
        while pick >= before + clips[unit]:
            before += clips[unit]
            unit += 1
        found[unit].add(pick - before)
    return found


def _stored(
    folder: OutputFolder, settings: Settings, codec: Codec, unit: Unit, numbers: set[int]
) -> dict[str, StoredClip]:
    """Some of the rows of a unit, by id."""
    suffix = suffix_of(settings.sink)
    shard = folder.data / f"{unit.name}{suffix}"
    if shard.exists():
        rows: Iterator[StoredClip] = read_rows(shard, codec.config)
        return {row.id: row for number, row in enumerate(rows) if number in numbers}
    found: dict[str, StoredClip] = {}
    number = 0
    for feed in _feeds(unit, settings, codec, {}):
        path = folder.data / f"{feed.id}{suffix}"
        if path.exists():
            if number in numbers:
                found[feed.id] = next(iter(read_rows(path, codec.config)))
            number += 1
    return found


def _feeds(
    unit: Unit, settings: Settings, codec: Codec, datasets: Mapping[str, Any]
) -> Iterator[Feed]:
    for clip in clips_of(unit, datasets, settings.audio_column):
        try:
            yield from feeds(clip, settings.treatment, codec.config)
        except (CodecError, OSError):
            continue


def _frames_that_differ(feed: Feed, row: StoredClip, settings: Settings, codec: Codec) -> int:
    try:
        blocks = encode_blocks(codec, feed, bandwidth_kbps=settings.bandwidth_kbps)
        codes = np.concatenate([block.codes for block in blocks])
    except (CodecError, OSError):
        return len(row.codes)
    if codes.shape != row.codes.shape:
        return max(len(codes), len(row.codes))
    return int((codes != row.codes).any(axis=1).sum())
