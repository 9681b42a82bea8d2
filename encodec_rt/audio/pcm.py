"""Uncompressed samples as bytes: linear PCM, IEEE floats and G.711."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.audio.source import PIECE_BYTES, ByteSource
from encodec_rt.types import Audio

FULL_SCALE = 32768.0


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """How one sample is stored in ``width`` bytes: a ``kind``, and the byte order.

    Kinds: "s" signed, "u" unsigned, "f" float, "alaw", "mulaw".
    """

    kind: str
    width: int
    big: bool = False

    @property
    def description(self) -> str:
        """In words."""
        if self.kind in _G711:
            return _G711[self.kind]
        what = {"s": "signed", "u": "unsigned", "f": "floating-point"}[self.kind]
        return f"{8 * self.width}-bit {what} PCM{', big-endian' if self.big else ''}"

    def decode(self, data: bytes, channels: int) -> Audio:
        """float32 [channels, n] of whole samples, full scale at 1."""
        samples = self._samples(data).reshape(-1, channels)
        # What float32 cannot hold becomes infinite, and the reader refuses that.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(samples.T, dtype=np.float32)

    def encode(self, audio: Audio) -> bytes:
        """The bytes of ``audio`` [channels, n], clipped to full scale; not for G.711 or 24 bits."""
        order = ">" if self.big else "<"
        if self.kind == "f":
            return np.ascontiguousarray(audio.T, dtype=f"{order}f{self.width}").tobytes()
        full = float(2 ** (8 * self.width - 1))
        steps = np.clip(np.rint(audio.T.astype(np.float64) * full), -full, full - 1)
        if self.kind == "u":
            return (steps + full).astype(f"{order}u{self.width}").tobytes()
        return steps.astype(f"{order}i{self.width}").tobytes()

    def _samples(self, data: bytes) -> NDArray[Any]:
        order = ">" if self.big else "<"
        if self.kind in _G711:
            table = _alaw() if self.kind == "alaw" else _mulaw()
            return table[np.frombuffer(data, np.uint8)]
        if self.kind == "f":
            return np.frombuffer(data, f"{order}f{self.width}")
        if self.kind == "u":
            full = 2.0 ** (8 * self.width - 1)
            return np.frombuffer(data, f"{order}u{self.width}") / full - 1.0
        if self.width == 3:
            # Into the upper three bytes of 32 bits, so that the sign comes out right.
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            rows = np.frombuffer(data, np.uint8).reshape(-1, 3)
            wide[:, 1:] = rows[:, ::-1] if self.big else rows
            return wide.view("<i4")[:, 0] / 2.0**31
        return np.frombuffer(data, f"{order}i{self.width}") / 2.0 ** (8 * self.width - 1)


RAW_FORMATS = {
    "u8": SampleFormat("u", 1),
    "s8": SampleFormat("s", 1),
    "mulaw": SampleFormat("mulaw", 1),
    "alaw": SampleFormat("alaw", 1),
} | {
    f"{kind}{8 * width}{'be' if big else 'le'}": SampleFormat(kind, width, big)
    for kind, width in (("s", 2), ("s", 3), ("s", 4), ("f", 4), ("f", 8))
    for big in (False, True)
}
"""Names of formats without a header, as in FFmpeg and SoX."""

RAW_OUTPUT_FORMATS = {
    name: form for name, form in RAW_FORMATS.items() if form.width != 3 and "law" not in name
}

_G711 = {"alaw": "G.711 A-law", "mulaw": "G.711 mu-law"}


@dataclass(frozen=True, slots=True)
class RawFormat:
    """Samples without a header: what a header would say."""

    name: str
    rate_hz: int
    channels: int


def read_pcm(
    source: ByteSource, form: SampleFormat, channels: int, size: int | None
) -> Iterator[Audio]:
    """The samples float32 [channels, n] in the next ``size`` bytes, or in all that follow."""
    frame = form.width * channels
    rest = b""
    left = size
    while left is None or left > 0:
        data = source.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if not data:
            return
        if left is not None:
            left -= len(data)
        data = rest + data
        whole = len(data) - len(data) % frame
        rest = data[whole:]
        if whole:
            yield form.decode(data[:whole], channels)


def _mulaw() -> NDArray[np.float32]:
    """ITU-T G.711, table 2: 3 bits of exponent and 4 of mantissa, all inverted, biased by 33."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    steps = ((2 * mantissa + 33) << exponent) - 33
    return np.where(code & 128, -steps, steps).astype(np.float32) * np.float32(4 / FULL_SCALE)


def _alaw() -> NDArray[np.float32]:
    """ITU-T G.711, table 1: as mu-law without a bias, and the even bits inverted."""
    code = np.arange(256, dtype=np.uint8) ^ np.uint8(0x55)
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    linear = 2 * mantissa + 1
    steps = np.where(exponent == 0, linear, (linear + 32) << np.maximum(exponent - 1, 0))
    return np.where(code & 128, steps, -steps).astype(np.float32) * np.float32(8 / FULL_SCALE)
