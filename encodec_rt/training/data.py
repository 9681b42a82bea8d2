"""The training audio: indexed once into packed PCM, then drawn as random crops.

``index_sources`` decodes every file to mono int16 at the model's rate, measures it, leaves out what
cannot be used (and says why), splits off held-out files and voices, and writes one packed file and
one table per source.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from encodec_rt.audio import AudioReader
from encodec_rt.errors import InputError
from encodec_rt.training.sources import Kind, Source

Floats = npt.NDArray[np.float32]
Split = Literal["train", "held-out"]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".g722")
SHORTEST_S = 0.25
SLOWEST_RATE_HZ = 16_000
NARROWEST_SPEECH_HZ = 4_300.0
FULL_BAND_HZ = 9_500.0
HELD_OUT_SHARE = 0.03
ACTIVE_DBFS = -48.0
_WINDOW_S = 0.02
_LONGEST_GAP_S = 0.4


@dataclass(frozen=True, slots=True)
class Clip:
    """One usable file in its source's packed PCM; ``spans`` are (start, length) of active audio."""

    path: str
    start: int
    samples: int
    speaker: str
    split: Split
    level_dbfs: float
    bandwidth_hz: float
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class IndexedSource:
    """What the index holds of one source: its usable clips, and what was left out and why."""

    name: str
    kind: Kind
    licence: str
    authors: str
    version: str
    clips: tuple[Clip, ...]
    left_out: tuple[tuple[str, str], ...]

    def hours(self, split: Split, *, active: bool = False) -> float:
        """Hours of that split; ``active`` counts only the spans above the level floor."""
        samples = sum(
            sum(length for _, length in clip.spans) if active else clip.samples
            for clip in self.clips
            if clip.split == split
        )
        return samples / 24_000 / 3600


def decode_mono(path: Path, sampling_rate: int) -> tuple[Floats, int]:
    """The audio of ``path``, of any kind, as mono float32 [n] at ``sampling_rate``; its own rate.

    Of a damaged file, all that decodes. Raises InputError for one that holds no audio.
    """
    with AudioReader(path) as reader:
        blocks = [block[0] for block in reader.blocks(sampling_rate, 1)]
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(audio):
        raise InputError(f"{path} holds no audio that can be read: it is empty")
    return audio, reader.rate_hz


def active_spans(audio: Floats, sampling_rate: int) -> list[tuple[int, int]]:
    """(start, length) of the stretches above -48 dBFS, gaps of up to 0.4 s bridged."""
    window = int(sampling_rate * _WINDOW_S)
    count = len(audio) // window
    if count == 0:
        return []
    power = np.square(audio[: count * window].reshape(count, window)).mean(1)
    loud = np.flatnonzero(power > 10 ** (ACTIVE_DBFS / 10))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > _LONGEST_GAP_S / _WINDOW_S)
    firsts = loud[np.concatenate([[0], breaks + 1])]
    lasts = loud[np.concatenate([breaks, [len(loud) - 1]])]
    return [(int(a) * window, int(b - a + 1) * window) for a, b in zip(firsts, lasts, strict=True)]


def bandwidth_hz(audio: Floats, sampling_rate: int) -> float:
    """The lowest frequency above which less than a millionth of the power lies."""
    size = 2048
    if len(audio) < size:
        audio = np.pad(audio, (0, size - len(audio)))
    count = min(len(audio) // size, 512)
    starts = np.linspace(0, len(audio) - size, count).astype(int)
    frames = np.stack([audio[s : s + size] for s in starts]) * np.hanning(size)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(0)
    above = np.cumsum(power[::-1])[::-1]
    if above[0] <= 0:
        return 0.0
    inside = np.flatnonzero(above > above[0] * 1e-6)
    return float(inside[-1] * sampling_rate / size)


def index_sources(
    sources: Sequence[tuple[Source, Path]],
    destination: Path,
    *,
    sampling_rate: int = 24_000,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[IndexedSource, ...]:
    """Decode, measure, split and pack each (source, folder) into ``destination``; what was indexed.

    A source that is already packed there is kept. Raises InputError when nothing usable is found.
    """
    destination.mkdir(parents=True, exist_ok=True)
    indexed: list[IndexedSource] = []
    for source, folder in sources:
        table = destination / f"{source.name}.json"
        if not table.is_file():
            _pack(source, folder, destination, sampling_rate)
        indexed.append(_read_table(table))
        left_out = indexed[-1].left_out
        report(
            f"{source.name}: {len(indexed[-1].clips)} files, "
            f"{indexed[-1].hours('train', active=True):.2f} h active to train on, "
            f"{indexed[-1].hours('held-out'):.2f} h held out, {len(left_out)} files left out"
        )
        for path, reason in left_out:
            report(f"  left out {path}: {reason}")
    if not any(source.clips for source in indexed):
        raise InputError(
            f"no usable audio in {', '.join(str(folder) for _, folder in sources)}; "
            f"wanted are {', '.join(AUDIO_SUFFIXES)} files of at least {SHORTEST_S} s"
        )
    return tuple(indexed)


def load_index(folder: Path) -> tuple[IndexedSource, ...]:
    """Every source packed in ``folder``, by name; raises InputError where there is none."""
    tables = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not tables:
        raise InputError(
            f"{folder} holds no packed audio; run `encodec-rt data index` with that folder first"
        )
    return tuple(_read_table(table) for table in tables)


def _pack(source: Source, folder: Path, destination: Path, sampling_rate: int) -> None:
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
                audio, rate = decode_mono(path, sampling_rate)
            except InputError as error:
                left_out.append((name, str(error)))
                continue
            spans = active_spans(audio, sampling_rate)
            bandwidth = bandwidth_hz(audio, sampling_rate)
            reason = _why_unusable(source.kind, len(audio) / sampling_rate, rate, spans, bandwidth)
            if reason:
                left_out.append((name, reason))
                continue
            np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tofile(file)
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
    partial.replace(packed)
    table = {
        "name": source.name,
        "kind": source.kind,
        "licence": source.licence,
        "authors": source.authors,
        "version": source.version,
        "sampling_rate": sampling_rate,
        "clips": [asdict(clip) for clip in clips],
        "left_out": left_out,
    }
    written = destination / f"{source.name}.json.partial"
    written.write_text(json.dumps(table))
    written.replace(destination / f"{source.name}.json")


def _matches(pattern: str, path: str) -> bool:
    return not pattern or re.search(pattern, path) is not None


def _why_unusable(
    kind: Kind, seconds: float, rate: int, spans: Sequence[tuple[int, int]], bandwidth: float
) -> str:
    if rate < SLOWEST_RATE_HZ:
        return f"sampled at {rate} Hz; at least {SLOWEST_RATE_HZ} Hz is wanted"
    if seconds < SHORTEST_S:
        return f"too short: {seconds:.2f} s; at least {SHORTEST_S} s is wanted"
    if not spans:
        return f"silent: nothing above {ACTIVE_DBFS:g} dBFS"
    if kind == "speech" and bandwidth < NARROWEST_SPEECH_HZ:
        return f"nothing above {bandwidth:.0f} Hz: telephone band stored at a higher rate"
    return ""


def _held_out_paths(source: Source, names: Sequence[str]) -> set[str]:
    named = {name for name in names if name.endswith(source.held_out_files or ("\0",))}
    voices = {name for name in names if source.speaker_of(name) in source.held_out_speakers}
    rest = [name for name in names if name not in named | voices]
    by_hash = sorted(rest, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = math.ceil(HELD_OUT_SHARE * len(rest)) if len(rest) >= 2 else 0
    return named | voices | set(by_hash[:count])


def _read_table(path: Path) -> IndexedSource:
    table = json.loads(path.read_text())
    return IndexedSource(
        name=table["name"],
        kind=table["kind"],
        licence=table["licence"],
        authors=table["authors"],
        version=table["version"],
        clips=tuple(
            Clip(**{**clip, "spans": tuple((s, n) for s, n in clip["spans"])})
            for clip in table["clips"]
        ),
        left_out=tuple((name, reason) for name, reason in table["left_out"]),
    )
