"""The recordings of speech that are bundled with the package."""

from __future__ import annotations

from importlib import resources

import numpy as np

from encodec_rt.audio import AudioReader
from encodec_rt.types import Audio


def bundled(name: str, rate_hz: int, channels: int = 1) -> Audio:
    """The recording ``name``, such as "speech_en", as [channels, n] at ``rate_hz``."""
    path = resources.files("encodec_rt") / "assets" / f"{name}.flac"
    with AudioReader(str(path)) as reader:
        return np.concatenate(list(reader.blocks(rate_hz, channels)), axis=1)
