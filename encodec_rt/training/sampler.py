"""Random training crops, mixed and levelled as in the paper, and fixed crops for validation.

A batch depends on (seed, step) only, so no random state has to be stored to resume.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encodec_rt.errors import ConfigError
from encodec_rt.training.acoustics import at_snr, coloured_noise, reverberated
from encodec_rt.training.data import FULL_BAND_HZ
from encodec_rt.training.sources import Kind
from encodec_rt.training.tables import Clip, IndexedSource, Split
from encodec_rt.types import Floats


@dataclass(frozen=True)
class MixConfig:
    """What a crop is made of.

    ``music``, ``speech``, ``two`` and ``three`` are the shares of items made of one music clip, one
    speech clip, any two clips, or three speech clips; the paper (section 4.1) has .32, .32, .24 and
    .12. A clip is scaled to ``level_dbfs`` and then changed by a gain from ``gain_db``.
    ``full_band_share`` of all clips come from files with content up to 9.5 kHz: without them a
    codec learns to drop the highs. ``weights`` are relative weights of sources of the same kind and
    band; a source without one has about the square root of its hours of active audio.

    ``reverb_share`` of the items with speech get reverberation, with a reverberation time [s] from
    ``reverb_s``. ``noise_share`` of them get background noise, at a signal-to-noise ratio from
    ``noise_snr_db``: half of it from sources of kind noise, if the index has any, the rest
    synthetic. Values are drawn uniformly from each range.
    """

    music: float = 0.18
    speech: float = 0.72
    two: float = 0.08
    three: float = 0.02
    full_band_share: float = 0.5
    level_dbfs: float = -20.0
    gain_db: tuple[float, float] = (-10.0, 6.0)
    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    reverb_share: float = 0.0
    reverb_s: tuple[float, float] = (0.15, 0.8)
    weights: Mapping[str, float] = field(default_factory=dict)


class Batches(Protocol):
    """Anything that supplies training crops."""

    def batch(self, step: int, items: int) -> Tensor:
        """Crops [items, channels, crop] of training step ``step``."""


class Prefetcher:
    """Prepares a sampler's batches in other processes while the GPU computes."""

    def __init__(self, sampler: Batches, *, workers: int | None = None, ahead: int = 2) -> None:
        """``workers`` processes (default: all cores but two) prepare ``ahead`` batches each."""
        self._sampler = sampler
        self._workers = workers or max(1, (os.cpu_count() or 1) - 2)
        self._ahead = ahead
        self._next: tuple[int, int] | None = None
        self._drawn: Iterator[Tensor] = iter(())

    def batch(self, step: int, items: int) -> Tensor:
        """The sampler's ``batch``; it is prepared in advance if steps are asked for in order."""
        if self._next != (step, items):
            loader = DataLoader(
                _Steps(self._sampler, items),
                batch_size=None,
                sampler=itertools.count(step),
                num_workers=self._workers,
                prefetch_factor=self._ahead,
                multiprocessing_context="fork",
            )
            self._drawn = iter(loader)
        self._next = step + 1, items
        return next(self._drawn)


@dataclass(frozen=True, slots=True)
class _Steps(Dataset[Tensor]):
    """Batches of ``items`` crops, indexed by step."""

    batches: Batches
    items: int

    def __getitem__(self, step: int) -> Tensor:
        return self.batches.batch(step, self.items)


class _Pool:
    """Active spans of one kind and band; draws a source by weight, then a span by its length."""

    def __init__(self, members: Sequence[tuple[IndexedSource, Clip]], weights: Mapping[str, float]):
        by_source: dict[str, list[Clip]] = {}
        for source, clip in members:
            by_source.setdefault(source.name, []).append(clip)
        self.names = sorted(by_source)
        self.clips = by_source
        self.spans: dict[str, npt.NDArray[np.int64]] = {}
        self.ends: dict[str, npt.NDArray[np.int64]] = {}
        shares = []
        for name in self.names:
            rows = [
                (number, start, length)
                for number, clip in enumerate(by_source[name])
                for start, length in clip.spans
            ]
            self.spans[name] = np.array(rows, dtype=np.int64)
            self.ends[name] = np.cumsum(self.spans[name][:, 2])
            shares.append(weights.get(name, float(self.ends[name][-1]) ** 0.5 / 1e4))
        self.shares = np.array(shares) / sum(shares)

    def draw(self, rng: np.random.Generator) -> tuple[str, Clip, int]:
        """A source's name, a clip, and the index of an active sample in that clip."""
        name = self.names[int(rng.choice(len(self.names), p=self.shares))]
        at = int(rng.integers(self.ends[name][-1]))
        row = int(np.searchsorted(self.ends[name], at, side="right"))
        number, start, length = self.spans[name][row]
        return name, self.clips[name][int(number)], int(start + rng.integers(length))


class Sampler:
    """Draws batches of crops from one split of an index."""

    def __init__(
        self,
        sources: Sequence[IndexedSource],
        folder: Path,
        mix: MixConfig,
        *,
        crop: int,
        seed: int,
        split: Split = "train",
        sampling_rate: int = 24_000,
        channels: int = 1,
    ) -> None:
        """Open the packed audio in ``folder``; ``crop`` is in samples.

        Raises ConfigError if the mix names an unknown source, or the audio is missing or has
        another rate or number of channels.
        """
        known = {source.name for source in sources}
        if unknown := sorted(set(mix.weights) - known):
            raise ConfigError(
                f"weights name {', '.join(unknown)}, but the index holds {', '.join(sorted(known))}"
            )
        for source in sources:
            if (source.sampling_rate, source.channels) != (sampling_rate, channels):
                raise ConfigError(
                    f"{source.name} is packed at {source.sampling_rate} Hz with "
                    f"{source.channels} channels, but the model takes {sampling_rate} Hz with "
                    f"{channels}; index the audio again with --rate and --channels"
                )
        self.sources, self.folder, self.split = sources, folder, split
        self.mix = mix
        self.crop = crop
        self.seed = seed
        self.sampling_rate = sampling_rate
        self.channels = channels
        self.audio = {
            source.name: np.memmap(folder / f"{source.name}.s16", dtype="<i2", mode="r").reshape(
                -1, channels
            )
            for source in sources
            if source.clips
        }
        self.pools: dict[tuple[str, bool], _Pool] = {}
        for kind in get_args(Kind):
            for full in (True, False):
                members = [
                    (source, clip)
                    for source in sources
                    for clip in source.clips
                    if source.kind == kind
                    and clip.split == split
                    and (clip.bandwidth_hz >= FULL_BAND_HZ) == full
                ]
                if members:
                    self.pools[kind, full] = _Pool(members, mix.weights)
        present = {kind for kind, _ in self.pools} - {"noise"}
        if not present:
            raise ConfigError(
                f"the index holds no {split} audio; at least one source needs two files, of which "
                "one is held out"
            )
        self.kinds = sorted(present)
        shares = {"music": mix.music, "speech": mix.speech, "two": mix.two, "three": mix.three}
        if "music" not in present:
            shares |= {"speech": mix.speech + mix.music, "music": 0.0}
        if "speech" not in present:
            shares |= {"music": mix.music + mix.speech + mix.three, "speech": 0.0, "three": 0.0}
        self.recipes = tuple(shares)
        self.chances = np.array(list(shares.values())) / sum(shares.values())

    def held_out(self, crop: int) -> Sampler:
        """The same sampler for the held-out audio, with crops of ``crop`` samples."""
        return self._another(self.mix, crop, "held-out")

    def remixed(self, mix: MixConfig) -> Sampler:
        """The same sampler with another mix."""
        return self._another(mix, self.crop, self.split)

    def _another(self, mix: MixConfig, crop: int, split: Split) -> Sampler:
        return Sampler(
            self.sources,
            self.folder,
            mix,
            crop=crop,
            seed=self.seed,
            split=split,
            sampling_rate=self.sampling_rate,
            channels=self.channels,
        )

    def batch(self, step: int, items: int) -> Tensor:
        """Crops [items, channels, crop] of training step ``step``, the same on every call."""
        rng = np.random.default_rng([self.seed, step])
        return torch.from_numpy(np.stack([self._item(rng) for _ in range(items)]))

    def _item(self, rng: np.random.Generator) -> Floats:
        recipe = self.recipes[int(rng.choice(len(self.recipes), p=self.chances))]
        kinds = {
            "music": ("music",),
            "speech": ("speech",),
            "two": tuple(rng.choice(self.kinds, 2)),
            "three": ("speech",) * 3,
        }[recipe]
        # The paper rejects crops that clip: they are drawn again, and the fourth is scaled down.
        for _ in range(4):
            mixed = np.zeros((self.channels, self.crop), dtype=np.float32)
            for kind in kinds:
                mixed += self._clip(str(kind), rng)
            if "speech" in kinds:
                mixed = self._surroundings(mixed, rng)
            peak = float(np.abs(mixed).max())
            if peak <= 0.99:
                return mixed
        return mixed * np.float32(0.99 / peak)

    def _surroundings(self, audio: Floats, rng: np.random.Generator) -> Floats:
        """Add reverberation and background noise to an item, as often as the mix says."""
        mix = self.mix
        if mix.reverb_share and rng.random() < mix.reverb_share:
            decay_s = float(rng.uniform(*mix.reverb_s))
            audio = np.stack(
                [reverberated(side, decay_s, rng, self.sampling_rate) for side in audio]
            )
        if mix.noise_share and rng.random() < mix.noise_share:
            recorded = any(kind == "noise" for kind, _ in self.pools) and rng.random() < 0.5
            noise = (
                self._clip("noise", rng)
                if recorded
                else coloured_noise(self.crop, rng, self.sampling_rate)[None]
            )
            audio = at_snr(audio, noise, float(rng.uniform(*mix.noise_snr_db)))
        return audio

    def _clip(self, kind: str, rng: np.random.Generator) -> Floats:
        full = bool(rng.random() < self.mix.full_band_share)
        pool = self.pools.get((kind, full)) or self.pools[kind, not full]
        name, clip, at = pool.draw(rng)
        gain_db = self.mix.level_dbfs - clip.level_dbfs + float(rng.uniform(*self.mix.gain_db))
        return self._cut(name, clip, at, rng) * np.float32(10 ** (gain_db / 20))

    def _cut(self, name: str, clip: Clip, at: int, rng: np.random.Generator) -> Floats:
        """A crop [channels, crop] that contains sample ``at`` of the clip; zero-padded if short."""
        lowest, highest = max(0, at - self.crop + 1), min(at, max(0, clip.samples - self.crop))
        start = int(rng.integers(lowest, highest + 1)) if lowest <= highest else 0
        samples = min(self.crop, clip.samples - start)
        offset = int(rng.integers(self.crop - samples + 1))
        cut = np.zeros((self.channels, self.crop), dtype=np.float32)
        first = clip.start + start
        piece = self.audio[name][first : first + samples].T
        cut[:, offset : offset + samples] = piece / np.float32(32768)
        return cut
