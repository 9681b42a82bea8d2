"""Statistics of clips: how often each entry of each codebook is used, and silent frames."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encodec_rt.types import Audio, Codes

Counts = npt.NDArray[np.int64]

SILENCE_DBFS = -60.0
_SILENT_POWER = 10 ** (SILENCE_DBFS / 10)


class CodeCounts:
    """Counts [Q, V] of how often each entry was used."""

    def __init__(self, codebooks: int, codebook_size: int) -> None:
        self.counts: Counts = np.zeros((codebooks, codebook_size), np.int64)

    def add(self, codes: Codes) -> None:
        """Count codes [frames, Q]."""
        for book, column in enumerate(codes.T):
            self.counts[book] += np.bincount(column, minlength=self.counts.shape[1])

    def to_text(self) -> str:
        """As text for JSON."""
        packed = zlib.compress(self.counts.astype("<i8").tobytes(), 6)
        return base64.b64encode(packed).decode()

    def add_text(self, text: str) -> None:
        """Add what ``to_text`` wrote of counts of the same shape."""
        raw = zlib.decompress(base64.b64decode(text))
        self.counts += np.frombuffer(raw, "<i8").reshape(self.counts.shape)


@dataclass(frozen=True)
class BookUse:
    """For one codebook: the share of its entries that occur, and the entropy in bits per code."""

    used_share: float
    entropy_bits: float


def book_uses(counts: Counts) -> list[BookUse]:
    """For each book of counts [Q, V]."""
    found = []
    for row in counts:
        shares = row[row > 0] / max(1, row.sum())
        entropy = float(-(shares * np.log2(shares)).sum()) if len(shares) else 0.0
        found.append(BookUse(float((row > 0).mean()), entropy))
    return found


def uses_as_json(counts: Counts) -> list[dict[str, Any]]:
    """``book_uses`` for JSON."""
    return [
        {"used_share": round(use.used_share, 4), "entropy_bits": round(use.entropy_bits, 4)}
        for use in book_uses(counts)
    ]


class SilenceMeter:
    """Counts the frames of ``hop`` samples below SILENCE_DBFS; the last may be shorter."""

    def __init__(self, hop: int) -> None:
        self._hop = hop
        self._rest: Audio | None = None
        self._silent = 0

    def add(self, audio: Audio) -> None:
        """Append ``audio`` [channels, n]."""
        if self._rest is not None and self._rest.shape[1]:
            audio = np.concatenate([self._rest, audio], axis=1)
        frames = audio.shape[1] // self._hop
        whole = audio[:, : frames * self._hop].reshape(len(audio), frames, self._hop)
        self._silent += int((np.square(whole).mean(axis=(0, 2)) < _SILENT_POWER).sum())
        self._rest = audio[:, frames * self._hop :]

    @property
    def frames(self) -> int:
        """Silent frames so far, a shorter last one included."""
        rest = self._rest
        if rest is None or not rest.shape[1]:
            return self._silent
        return self._silent + int(np.square(rest).mean() < _SILENT_POWER)
