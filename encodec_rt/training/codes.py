"""The codes that a language model and code tables are trained on: packed audio through a codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.training.acoustics import another_voice
from encodec_rt.training.tables import Clip, Split, load_index
from encodec_rt.transcode import FILE_BLOCK_FRAMES
from encodec_rt.types import Codes

LONGEST_CLIP_S = 20.0
"""Of longer clips the begin is taken, so that a few of them do not outweigh all others."""


@dataclass(frozen=True, eq=False)
class CodedClips:
    """Codes of clips, each [frames, codebooks], for each split."""

    train: tuple[Codes, ...]
    held_out: tuple[Codes, ...]


def coded_clips(
    codec: Codec,
    data: Path,
    folder: Path,
    *,
    hours: float,
    voices: int = 0,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> CodedClips:
    """Codes of up to ``hours`` of speech in ``data``, and of a tenth of that held out.

    What is trained on is coded ``voices`` times more, each time as other voices would say it. All
    codes are kept in ``folder`` under the hash of the weights, and taken from there next time.
    Raises InputError where there is no packed speech.
    """
    found: dict[str, tuple[Codes, ...]] = {}
    parts: list[tuple[str, Split, float, int | None]] = [
        ("train", "train", hours, None),
        *((f"voices-{voice}", "train", hours, voice) for voice in range(1, voices + 1)),
        ("held-out", "held-out", hours / 10, None),
    ]
    for part_name, split, wanted, voice in parts:
        path = folder / f"codes-{codec.codes_sha256[:8]}-{part_name}.npz"
        if not path.is_file():
            clips = list(_encoded(codec, data, split, wanted * 3600, seed, voice))
            if not clips:
                raise InputError(f"{data} has no speech of the split {split!r}")
            lengths = np.array([len(clip) for clip in clips])
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, force=True) as part, part.open("wb") as file:
                np.savez(file, codes=np.concatenate(clips), lengths=lengths)
        with np.load(path, allow_pickle=False) as held:
            codes, ends = held["codes"], np.cumsum(held["lengths"])
        found[part_name] = tuple(np.split(codes, ends[:-1]))
        seconds = len(codes) * codec.config.hop_length / codec.config.sampling_rate
        report(f"{part_name}: {len(ends)} clips, {seconds / 3600:.2f} h of codes")
    held_out = found.pop("held-out")
    return CodedClips(tuple(chain.from_iterable(found.values())), held_out)


def _encoded(
    codec: Codec, data: Path, split: Split, wanted_s: float, seed: int, voice: int | None
) -> Iterator[Codes]:
    """Codes of clips in an order drawn by ``seed``, as they are or as other voices number
    ``voice`` say them.
    """
    config = codec.config
    clips: list[tuple[str, Clip]] = [
        (source.name, clip)
        for source in load_index(data)
        if source.kind == "speech"
        for clip in source.clips
        if clip.split == split
    ]
    order = np.random.default_rng(seed).permutation(len(clips))
    taken_s = 0.0
    for index in order:
        if taken_s >= wanted_s:
            return
        name, clip = clips[index]
        size = min(clip.samples, round(LONGEST_CLIP_S * config.sampling_rate))
        pcm = np.memmap(data / f"{name}.s16", "<i2", "r", 2 * clip.start, (size,))
        encoder = codec.stream_encoder(
            config.target_bandwidths[-1], start="exact", block_frames=FILE_BLOCK_FRAMES
        )
        audio = pcm.astype(np.float32) / np.float32(32768)
        if voice is not None:
            chance = np.random.default_rng((seed, voice, index))
            audio = another_voice(audio, chance, config.sampling_rate)
        yield np.concatenate([encoder.push(audio), encoder.flush()])
        taken_s += size / config.sampling_rate
