"""The recordings that quality is scored on: held-out audio, clean, noisy and reverberant.

The set is fixed, so that scores of different models stay comparable: new training packages add no
clips.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encodec_rt.quality import Kind
from encodec_rt.training.acoustics import at_snr, coloured_noise, reverberated
from encodec_rt.training.tables import IndexedSource

RATE = 24_000
CLIP_S = 5.0
LEVEL_DBFS = -22.0
NOISE_SNR_DB = 15.0
ROOM_S = 0.5
UNSEEN = {"asterisk-core-sounds-it-g722": 4, "tuxpaint-stamps-default/da": 4}
CLIPS = {"speech": 2, "music": 2}
SCORED = (
    "asterisk-core-sounds-en-g722",
    "asterisk-core-sounds-es-g722",
    "asterisk-core-sounds-fr-g722",
    "asterisk-core-sounds-it-g722",
    "asterisk-core-sounds-ru-g722",
    "festvox-ru",
    "fillets-ng-data-cs",
    "fillets-ng-data-nl",
    "fretsonfire-songs-sectoid",
    "klettres-data",
    "ktuberling-data",
    "singularity-music",
    "tuxpaint-stamps-default",
    "warzone2100-music",
    "wesnoth-1.16-music",
)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """One clip to score; ``unseen`` if the training data has no other clip of its voice."""

    name: str
    kind: Kind
    unseen: bool
    audio: Samples


def held_out_clips(sources: Sequence[IndexedSource], folder: Path) -> list[HeldOut]:
    """Clips of 5 s, cut from the concatenated active audio of held-out files, at the same level."""
    found = []
    for source in sources:
        if source.name not in SCORED:
            continue
        packed = np.memmap(folder / f"{source.name}.s16", dtype="<i2", mode="r")
        voices = defaultdict(list)
        for clip in source.clips:
            if clip.split == "held-out":
                unseen = clip.speaker if clip.speaker in UNSEEN else ""
                voices[unseen].append(clip)
        kind: Kind = "music" if source.kind == "music" else "speech"
        for unseen, clips in sorted(voices.items()):
            wanted = UNSEEN[unseen] if unseen else CLIPS[kind]
            size = int(CLIP_S * RATE)
            joined: list[Samples] = []
            for clip in clips[:: max(1, len(clips) // (8 * wanted))]:
                gain = np.float32(10 ** ((LEVEL_DBFS - clip.level_dbfs) / 20) / 32768)
                for start, length in clip.spans:
                    first = clip.start + start
                    joined.append(packed[first : first + length] * gain)
            whole = np.concatenate(joined)
            count = min(wanted, len(whole) // size)
            starts = np.linspace(0, max(0, len(whole) - size), count).astype(int)
            for number, start in enumerate(starts):
                cut = _within_full_scale(whole[start : start + size])
                name = f"{unseen or source.name}#{number}"
                found.append(HeldOut(name, kind, bool(unseen), cut))
    return found


def noisy(clip: HeldOut) -> HeldOut:
    """The clip with stationary background noise at an SNR of 15 dB, the same on every call."""
    rng = np.random.default_rng(zlib.crc32(clip.name.encode()))
    noise = coloured_noise(len(clip.audio), rng, RATE)
    return replace(clip, audio=_within_full_scale(at_snr(clip.audio, noise, NOISE_SNR_DB)))


def in_a_room(clip: HeldOut) -> HeldOut:
    """The clip with a reverberation time of 0.5 s, the same on every call."""
    rng = np.random.default_rng(zlib.crc32(clip.name.encode()))
    return replace(clip, audio=_within_full_scale(reverberated(clip.audio, ROOM_S, rng, RATE)))


def _within_full_scale(audio: Samples) -> Samples:
    return audio * np.float32(min(1.0, 0.95 / float(np.abs(audio).max())))
