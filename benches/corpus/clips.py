"""Corpora of bundled speech: clips of many lengths, a very long one, very many short ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benches.environment import ROOT

RATE_HZ = 24_000
SHORT_S = 0.02
_ASSETS = ROOT / "encodec_rt" / "assets"


def cut_clips(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write clips of speech of 0.3 to 12 s, with a median of 2.5 s -> their paths."""
    speech = np.concatenate([read(path) for path in sorted(_ASSETS.glob("*.flac"))])
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        samples = int(RATE_HZ * np.clip(rng.lognormal(np.log(2.5), 0.8), 0.3, 12.0))
        begin = int(rng.integers(0, len(speech) - samples))
        paths.append(folder / f"{index:06d}.flac")
        gain = np.float32(rng.uniform(0.3, 1.0))
        soundfile.write(paths[-1], gain * speech[begin : begin + samples], RATE_HZ)
    return paths


def read(path: Path) -> NDArray[np.float32]:
    """The samples [n] of a clip."""
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    return samples


def write_long(folder: Path, seconds: int) -> None:
    """Write one clip of at least ``seconds``."""
    folder.mkdir(parents=True)
    clip = read(_ASSETS / "speech_en.flac")
    with soundfile.SoundFile(folder / "hour.flac", "w", RATE_HZ, 1) as file:
        for _ in range(int(seconds * RATE_HZ / len(clip)) + 1):
            file.write(clip)


def write_many(folder: Path, count: int) -> None:
    """Write ``count`` short clips: hard links to ten files, to save disk space."""
    folder.mkdir(parents=True)
    clip = read(_ASSETS / "speech_en.flac")
    size = int(SHORT_S * RATE_HZ)
    kept = folder.with_name("kept")
    kept.mkdir()
    for index in range(10):
        soundfile.write(kept / f"{index}.wav", clip[index * size : (index + 1) * size], RATE_HZ)
    for index in range(count):
        os.link(kept / f"{index % 10}.wav", folder / f"{index:07d}.wav")
