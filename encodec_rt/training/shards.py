"""Packed audio as Opus shards, for a machine to which only small files can be transferred.

A shard is ``shard-NNN.opus``, clips one after another in a single Ogg Opus stream at a constant
bitrate, and ``shard-NNN.json``, the table that locates them. Clips, held-out ones included, are
assigned by the hash of their names, so any shard is a fair sample of the whole. At 48 kbps an hour
takes 22 MB. Unpacking gives a folder of packed audio with clips of exactly the same lengths.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.model.identity import file_sha256
from encodec_rt.training.tables import (
    Clip,
    IndexedSource,
    load_index,
    name_hash,
    read_table,
    write_table,
)
from encodec_rt.types import Samples

_OVERHEAD = 1.03
_RATE_HZ = 24_000
_MAX_KBPS = 256.0


def write_shards(
    packed: Path, folder: Path, *, kbps: float = 48.0, shard_mib: float = 15.0, most: int = 0
) -> list[Path]:
    """Write the packed audio in ``packed`` to ``folder`` as shards -> the paths of the Opus files.

    A shard has about ``shard_mib`` MiB at most, unless a single clip is longer. ``most`` limits the
    number of shards; 0 means all. Raises InputError if ``folder`` is not empty or the audio is not
    24 kHz mono, and ConfigError for numbers out of range.
    """
    if not 6 <= kbps <= _MAX_KBPS:
        raise ConfigError(f"kbps={kbps}; accepted: 6 to {_MAX_KBPS:g}")
    if not 0.1 <= shard_mib <= 1024 or most < 0:
        raise ConfigError(
            f"shard_mib={shard_mib}, most={most}; accepted: 0.1 to 1024 MiB, and 0 or more shards "
            "(0: all)"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new name for the shards")
    folder.mkdir(parents=True, exist_ok=True)
    sources = {source.name: source for source in load_index(packed)}
    for source in sources.values():
        if (source.sampling_rate, source.channels) != (_RATE_HZ, 1):
            raise InputError(
                f"{source.name} is packed at {source.sampling_rate} Hz with {source.channels} "
                "channels; shards hold 24 kHz mono"
            )
    seconds = shard_mib * 2**20 * 8 / (kbps * 1000 * _OVERHEAD)
    written = []
    for number, clips in enumerate(_grouped(list(sources.values()), int(seconds * _RATE_HZ))):
        if most and number == most:
            break
        written.append(folder / f"shard-{number:03d}.opus")
        _write_shard(written[-1], clips, sources, packed, kbps)
    return written


def read_shards(folder: Path, packed: Path) -> list[IndexedSource]:
    """Unpack every shard in ``folder`` into ``packed``, a folder like one from ``data index``.

    Returns its index. Raises InputError for a damaged or missing shard, and if ``packed`` holds
    packed audio already.
    """
    tables = sorted(folder.glob("shard-*.json")) if folder.is_dir() else []
    if not tables:
        raise InputError(f"{folder} holds no shards; make them with encodec-rt data shard")
    if packed.is_dir() and any(packed.glob("*.json")):
        raise InputError(f"{packed} holds packed audio already; give a new folder")
    packed.mkdir(parents=True, exist_ok=True)
    sources: dict[str, dict[str, Any]] = {}
    clips: dict[str, list[Clip]] = defaultdict(list)
    for path in tables:
        table = _read_table(path)
        audio = _decode(path.with_suffix(".opus"), table)
        at = 0
        for entry in table["clips"]:
            name = entry.pop("source")
            sources.setdefault(name, table["sources"][name])
            clip = Clip(**{**entry, "spans": tuple((s, n) for s, n in entry["spans"])})
            target = packed / f"{name}.s16"
            start = target.stat().st_size // 2 if target.is_file() else 0
            with target.open("ab") as file:
                audio[at : at + clip.samples].astype("<i2").tofile(file)
            clips[name].append(replace(clip, start=start))
            at += clip.samples
    for name, facts in sources.items():
        source = IndexedSource(**facts, clips=tuple(clips[name]), left_out=())
        write_table(source, packed)
    return [read_table(packed / f"{name}.json") for name in sorted(sources)]


def _grouped(
    sources: Sequence[IndexedSource], samples: int
) -> Iterator[list[tuple[IndexedSource, Clip]]]:
    """Clips sorted by the hash of their names, in groups of at most ``samples``, or of one clip."""
    named = [(source, clip) for source in sources for clip in source.clips]
    named.sort(key=lambda pair: name_hash(f"{pair[0].name}/{pair[1].path}"))
    group: list[tuple[IndexedSource, Clip]] = []
    filled = 0
    for source, clip in named:
        if group and filled + clip.samples > samples:
            yield group
            group, filled = [], 0
        group.append((source, clip))
        filled += clip.samples
    if group:
        yield group


def _write_shard(
    path: Path,
    clips: Sequence[tuple[IndexedSource, Clip]],
    sources: dict[str, IndexedSource],
    packed: Path,
    kbps: float,
) -> None:
    pcm = {
        name: np.memmap(packed / f"{name}.s16", dtype="<i2", mode="r")
        for name in {source.name for source, _ in clips}
    }
    with replacing(path, force=False) as partial:
        _encode(partial, (pcm[s.name][c.start : c.start + c.samples] for s, c in clips), kbps)
        digest = file_sha256(partial)
    table = {
        "sha256": digest,
        "samples": sum(clip.samples for _, clip in clips),
        "sources": {
            name: {
                key: getattr(sources[name], key)
                for key in ("name", "kind", "licence", "authors", "version")
            }
            for name in pcm
        },
        "clips": [{"source": source.name, **asdict(clip)} for source, clip in clips],
    }
    with replacing(path.with_suffix(".json"), force=False) as partial:
        partial.write_text(json.dumps(table), encoding="utf-8")


def _encode(path: Path, pieces: Iterator[Samples], kbps: float) -> None:
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=_RATE_HZ, options={"vbr": "off"})
        stream.bit_rate = round(kbps * 1000)
        stream.layout = "mono"
        position = 0
        for block in _blocks(pieces):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = _RATE_HZ, position
            position += len(block)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _blocks(pieces: Iterator[Samples]) -> Iterator[Samples]:
    """The samples of ``pieces`` in blocks of at most a second, each for one AudioFrame."""
    for piece in pieces:
        for start in range(0, len(piece), _RATE_HZ):
            yield np.ascontiguousarray(piece[start : start + _RATE_HZ])


def _decode(path: Path, table: dict[str, Any]) -> Samples:
    """The shard's samples [n], as many as its table says."""
    if file_sha256(path) != table["sha256"]:
        raise InputError(
            f"{path} is damaged: its SHA-256 is not the one in its table; transfer it again"
        )
    blocks: list[Samples] = []
    with av.open(str(path)) as container:
        to_rate = av.AudioResampler(format="s16", layout="mono", rate=_RATE_HZ)
        for frame in container.decode(audio=0):
            blocks += [part.to_ndarray()[0] for part in to_rate.resample(frame)]
        blocks += [part.to_ndarray()[0] for part in to_rate.resample(None)]
    audio = np.concatenate(blocks)
    wanted = int(table["samples"])
    return np.pad(audio[:wanted], (0, max(0, wanted - len(audio))))


def _read_table(path: Path) -> dict[str, Any]:
    audio = path.with_suffix(".opus")
    if not audio.is_file():
        raise InputError(f"{audio} is missing; transfer it to the folder of its table")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: table[name] for name in ("sha256", "samples", "sources", "clips")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a shard's table: {error}") from error
