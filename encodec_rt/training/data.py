"""Indexing training audio: files are decoded and measured once, and packed as PCM.

``index_sources`` decodes every file to int16 at the model's rate and number of channels, measures
it, leaves out what cannot be used (and says why), splits off held-out files and voices, and writes
one packed file and one table per source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from encodec_rt.audio import AudioReader
from encodec_rt.errors import InputError
from encodec_rt.pcm import to_int16
from encodec_rt.training.analysis import ACTIVE_DBFS, active_spans, bandwidth_hz
from encodec_rt.training.sources import Kind, Source
from encodec_rt.training.tables import Clip, IndexedSource, name_hash, read_table, write_table
from encodec_rt.types import Floats

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".g722")
SHORTEST_S = 0.25
SLOWEST_RATE_HZ = 16_000
NARROWEST_SPEECH_HZ = 4_300.0
FULL_BAND_HZ = 9_500.0
HELD_OUT_SHARE = 0.03


def decode_mono(path: Path, sampling_rate: int) -> tuple[Floats, int]:
    """The audio of ``path`` as mono float32 [n] at ``sampling_rate`` in Hz, and its own rate in Hz.

    Of a damaged file, everything that can be decoded. Raises InputError for a file without audio.
    """
    with AudioReader(path) as reader:
        blocks = [block[0] for block in reader.blocks(sampling_rate, 1)]
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(audio):
        raise InputError(f"{path} holds no audio that can be read: it is empty")
    return audio, reader.rate_hz


def index_sources(
    sources: Sequence[tuple[Source, Path]],
    destination: Path,
    *,
    sampling_rate: int = 24_000,
    channels: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[IndexedSource, ...]:
    """Decode, measure, split and pack each (source, folder) into ``destination`` -> the index.

    A packed file holds interleaved int16 PCM at ``sampling_rate`` in Hz. A source that is already
    packed there is kept. Raises InputError if no file is usable, or if nothing is left to train on
    or to hold out; whatever this call packed is then removed. ``report`` gets a line per source and
    per file left out.
    """
    destination.mkdir(parents=True, exist_ok=True)
    indexed: list[IndexedSource] = []
    fresh: list[str] = []
    for source, folder in sources:
        table = destination / f"{source.name}.json"
        if not table.is_file():
            _pack(source, folder, destination, sampling_rate, channels)
            fresh.append(source.name)
        indexed.append(read_table(table))
        left_out = indexed[-1].left_out
        report(
            f"{source.name}: {len(indexed[-1].clips)} files, "
            f"{indexed[-1].hours('train', active=True):.2f} h active to train on, "
            f"{indexed[-1].hours('held-out'):.2f} h held out, {len(left_out)} files left out"
        )
        for path, reason in left_out:
            report(f"  left out {path}: {reason}")
    if problem := _why_untrainable(indexed):
        for name in fresh:
            for suffix in (".json", ".s16"):
                (destination / f"{name}{suffix}").unlink()
        folders = ", ".join(str(folder) for _, folder in sources)
        raise InputError(f"no usable audio in {folders}: {problem}")
    return tuple(indexed)


def _why_untrainable(sources: Sequence[IndexedSource]) -> str:
    clips = [clip for source in sources if source.kind != "noise" for clip in source.clips]
    if not clips:
        return (
            f"accepted are {', '.join(AUDIO_SUFFIXES)} files of speech or music, at least "
            f"{SHORTEST_S} s long"
        )
    for split, purpose in (("held-out", "is left to hold out from"), ("train", "is left for")):
        if all(clip.split != split for clip in clips):
            return (
                f"nothing {purpose} training, out of {len(clips)} usable files; at least one "
                "source needs two usable files or more, of which one is held out"
            )
    return ""


def _pack(
    source: Source, folder: Path, destination: Path, sampling_rate: int, channels: int
) -> None:
    pattern = source.files
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.suffix.lower() in AUDIO_SUFFIXES
        and _matches(pattern, path.as_posix())
    )
    held_out = _held_out_paths(source, [path.relative_to(folder).as_posix() for path in paths])
    clips: list[Clip] = []
    left_out: list[tuple[str, str]] = []
    position = 0
    packed = destination / f"{source.name}.s16"
    partial = packed.with_suffix(".partial")
    with partial.open("wb") as file:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                sound, rate = _decode(path, sampling_rate, channels)
            except InputError as error:
                left_out.append((name, str(error)))
                continue
            audio = sound.mean(0)
            spans = active_spans(audio, sampling_rate)
            bandwidth = bandwidth_hz(audio, sampling_rate)
            reason = _why_unusable(source.kind, len(audio) / sampling_rate, rate, spans, bandwidth)
            if reason:
                left_out.append((name, reason))
                continue
            to_int16(sound.T).astype("<i2").tofile(file)
            active = np.concatenate([audio[s : s + n] for s, n in spans])
            speaker = source.speaker_of(name)
            clips.append(
                Clip(
                    path=name,
                    start=position,
                    samples=len(audio),
                    speaker=speaker,
                    split="held-out" if name in held_out else "train",
                    level_dbfs=round(10 * math.log10(float(np.square(active).mean())), 2),
                    bandwidth_hz=round(bandwidth),
                    spans=tuple(spans),
                )
            )
            position += len(audio)
    if len(clips) >= 2 and all(clip.split == "train" for clip in clips):
        # None of the files that were to be held out is usable.
        first = min(range(len(clips)), key=lambda number: name_hash(clips[number].path))
        clips[first] = replace(clips[first], split="held-out")
    partial.replace(packed)
    found = IndexedSource(
        name=source.name,
        kind=source.kind,
        licence=source.licence,
        authors=source.authors,
        version=source.version,
        clips=tuple(clips),
        left_out=tuple(left_out),
        sampling_rate=sampling_rate,
        channels=channels,
    )
    write_table(found, destination)


def _decode(path: Path, sampling_rate: int, channels: int) -> tuple[Floats, int]:
    """The audio [channels, n] of a file at ``sampling_rate``, and the file's own rate in Hz."""
    if channels == 1:
        mono, rate = decode_mono(path, sampling_rate)
        return mono[None], rate
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(sampling_rate, channels))
        if not blocks:
            raise InputError(f"{path} holds no audio that can be read: it is empty")
        return np.concatenate(blocks, axis=1), reader.rate_hz


def _matches(pattern: str, path: str) -> bool:
    return not pattern or re.search(pattern, path) is not None


def _why_unusable(
    kind: Kind, seconds: float, rate: int, spans: Sequence[tuple[int, int]], bandwidth: float
) -> str:
    if rate < SLOWEST_RATE_HZ:
        return f"sampled at {rate} Hz; at least {SLOWEST_RATE_HZ} Hz is needed"
    if seconds < SHORTEST_S:
        return f"too short: {seconds:.2f} s; at least {SHORTEST_S} s is needed"
    if not spans:
        return f"silent: nothing above {ACTIVE_DBFS:g} dBFS"
    if kind == "speech" and bandwidth < NARROWEST_SPEECH_HZ:
        return f"nothing above {bandwidth:.0f} Hz: telephone band stored at a higher rate"
    return ""


def _held_out_paths(source: Source, names: Sequence[str]) -> set[str]:
    named = {name for name in names if name.endswith(source.held_out_files or ("\0",))}
    voices = {name for name in names if source.speaker_of(name) in source.held_out_speakers}
    rest = [name for name in names if name not in named | voices]
    by_hash = sorted(rest, key=name_hash)
    count = math.ceil(HELD_OUT_SHARE * len(rest)) if len(rest) >= 2 else 0
    return named | voices | set(by_hash[:count])
