"""The codes that a language model and code tables are trained on: packed audio through a codec."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.training.acoustics import another_voice
from encodec_rt.training.tables import Clip, Split, load_index
from encodec_rt.transcode import FILE_BLOCK_FRAMES
from encodec_rt.types import Codes, Floats

_BATCH_SAMPLES = 24_000 * 600
"""Samples of a batch for a GPU, which takes a few GB there."""
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
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> CodedClips:
    """Codes of up to ``hours`` of speech in ``data``, and of a tenth of that held out.

    What is trained on is coded ``voices`` times more, each time as other voices would say it. All
    codes are kept in ``folder`` under the hash of the weights, and taken from there next time.
    A GPU codes many clips at once; near-ties may then differ. Raises InputError where there is no
    packed speech.
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
            waveforms = _Waveforms(codec.config.sampling_rate, data, split, wanted, seed, voice)
            if not len(waveforms):
                raise InputError(f"{data} has no speech of the split {split!r}")
            clips = _encoded(codec, waveforms, torch.device(device))
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


class _Waveforms(Dataset[Floats]):
    """Clips of speech in an order drawn by ``seed``, as they are or as other voices number
    ``voice`` say them.
    """

    def __init__(
        self,
        sampling_rate: int,
        data: Path,
        split: Split,
        hours: float,
        seed: int,
        voice: int | None,
    ) -> None:
        self._data, self._rate, self._seed, self._voice = data, sampling_rate, seed, voice
        clips = [
            (source.name, clip)
            for source in load_index(data)
            if source.kind == "speech"
            for clip in source.clips
            if clip.split == split
        ]
        self._clips: list[tuple[int, str, Clip]] = []
        left = hours * 3600 * sampling_rate
        for index in np.random.default_rng(seed).permutation(len(clips)):
            if left <= 0:
                break
            self._clips.append((int(index), *clips[index]))
            left -= self.samples(len(self._clips) - 1)

    def __len__(self) -> int:
        return len(self._clips)

    def samples(self, number: int) -> int:
        """The samples of a clip before its voice is changed, which changes its length."""
        return min(self._clips[number][2].samples, round(LONGEST_CLIP_S * self._rate))

    def __getitem__(self, number: int) -> Floats:
        index, name, clip = self._clips[number]
        shape = (self.samples(number),)
        pcm = np.memmap(self._data / f"{name}.s16", "<i2", "r", 2 * clip.start, shape)
        audio = pcm.astype(np.float32) / np.float32(32768)
        if self._voice is None:
            return audio
        chance = np.random.default_rng((self._seed, self._voice, index))
        return another_voice(audio, chance, self._rate)


def _encoded(codec: Codec, waveforms: _Waveforms, device: torch.device) -> list[Codes]:
    """The codes of every clip, in order."""
    bandwidth = codec.config.target_bandwidths[-1]
    if device.type == "cuda":
        return _encoded_in_batches(codec, waveforms, device, bandwidth)
    clips = []
    for number in range(len(waveforms)):
        encoder = codec.stream_encoder(bandwidth, start="exact", block_frames=FILE_BLOCK_FRAMES)
        clips.append(np.concatenate([encoder.push(waveforms[number]), encoder.flush()]))
    return clips


@torch.inference_mode()
def _encoded_in_batches(
    codec: Codec, waveforms: _Waveforms, device: torch.device, bandwidth: float
) -> list[Codes]:
    """The same with plain PyTorch, in batches of clips of about the same length.

    The audio is prepared in other processes: changing voices takes longer than encoding.
    """
    model = copy.deepcopy(codec.model).to(device, torch.float32).eval()
    order = sorted(range(len(waveforms)), key=waveforms.samples)
    batches: list[list[int]] = [[]]
    for number in order:
        if batches[-1] and waveforms.samples(number) * (len(batches[-1]) + 1) > _BATCH_SAMPLES:
            batches.append([])
        batches[-1].append(number)
    loader = DataLoader(
        waveforms,
        batch_sampler=batches,
        collate_fn=_padded,
        num_workers=max(1, (os.cpu_count() or 1) - 2),
        multiprocessing_context="fork",
    )
    clips: dict[int, Codes] = {}
    for batch, (audio, lengths) in zip(batches, loader, strict=True):
        codes = model.encode(audio.to(device)[:, None], bandwidth=bandwidth).audio_codes[0]
        frames = -(-np.array(lengths) // codec.config.hop_length)
        for number, rows, count in zip(batch, codes.cpu().numpy(), frames, strict=True):
            clips[number] = rows[:, :count].T.astype(np.uint16)
    return [clips[number] for number in range(len(waveforms))]


def _padded(clips: Sequence[Floats]) -> tuple[Tensor, list[int]]:
    """Clips [n] with zeros behind them as one batch, and their lengths in samples."""
    lengths = [len(clip) for clip in clips]
    audio = torch.zeros(len(clips), max(lengths))
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return audio, lengths
