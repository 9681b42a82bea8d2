"""``.ecdc`` files, version 0: docs/format.md has the byte layout.

Reading and writing go in pieces, so that memory does not grow with the length of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from encodec_rt.bitstream.ecdc_header import (
    SCALE,
    EcdcHeader,
    read_header,
    read_up_to,
    segments,
)
from encodec_rt.bitstream.ecdc_writer import EcdcWriter, GrowingEcdc
from encodec_rt.bitstream.packet import packed_size, unpack_codes
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import PacketError
from encodec_rt.types import Codes

__all__ = [
    "Block",
    "EcdcHeader",
    "EcdcReader",
    "EcdcWriter",
    "GrowingEcdc",
    "read_header",
    "segments",
]

_BLOCK_FRAMES = 512


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of a stream: ``codes`` uint16 [frames, codebooks] for ``samples`` samples.

    For a model that streams in segments it is a whole segment, else any number of frames.
    """

    codes: Codes
    scale: float | None
    samples: int


class CodeSegmentDecoder(Protocol):
    """A language model's decoder."""

    def segment(self, file: BinaryIO, frames: int, books: int) -> Iterator[Codes]:
        """The codes of the next segment in ``file``, in blocks; fewer if the file ends."""


class EcdcReader:
    """Iterates over the blocks of a stream whose header was read already.

    A stream that ends early raises PacketError, and so does one with bytes after its end; with
    ``salvage`` it ends after its last whole frame, and ``truncated`` or ``continued`` is set.
    """

    def __init__(
        self,
        file: BinaryIO,
        header: EcdcHeader,
        config: EncodecConfig,
        *,
        salvage: bool = False,
        decoder: CodeSegmentDecoder | None = None,
    ) -> None:
        if header.language_model and decoder is None:
            raise PacketError(
                "this stream is coded with the original package's language model; name its .th "
                "file with --lm"
            )
        self._decoder = decoder if header.language_model else None
        if header.codebooks > config.num_quantizers:
            raise PacketError(
                f"nc={header.codebooks} codebooks; the model has {config.num_quantizers}"
            )
        self.header = header
        self.truncated = self.continued = False
        self._file = file
        self._config = config
        self._salvage = salvage

    def __iter__(self) -> Iterator[Block]:
        """The blocks, in order."""
        for samples, frames in segments(self._config, self.header.samples):
            yield from self._segment(samples, frames)
            if self.truncated:
                return
        self.continued = bool(self._file.read(1))
        if self.continued and not self._salvage:
            raise PacketError(
                f"more bytes follow after the {self.header.samples} samples of the header; "
                "the file is damaged, or something was appended to it"
            )

    def _segment(self, samples: int, frames: int) -> Iterator[Block]:
        scale = None
        if self._config.normalize:
            scale = self._scale()
            if self.truncated:
                return
        if self._decoder is not None:
            yield from self._coded(self._decoder, samples, frames, scale)
            return
        step = _BLOCK_FRAMES if self._config.is_framewise else frames
        bits = self._config.codebook_nbits
        books = self.header.codebooks
        for start in range(0, frames, step):
            count = min(step, frames - start)
            size = packed_size(count * books, bits)
            data = read_up_to(self._file, size)
            if len(data) < size:
                self._cut()
                count = len(data) * 8 // (books * bits)
                data = data[: packed_size(count * books, bits)]
            held = min(samples - start * self._config.hop_length, count * self._config.hop_length)
            if count:
                yield Block(unpack_codes(data, bits, (count, books)), scale, held)
            if self.truncated:
                return

    def _coded(
        self, decoder: CodeSegmentDecoder, samples: int, frames: int, scale: float | None
    ) -> Iterator[Block]:
        """A segment that a language model coded: whole, unless the model streams by frames."""
        given, parts = 0, list[Codes]()
        for codes in decoder.segment(self._file, frames, self.header.codebooks):
            given += len(codes)
            if not self._config.is_framewise:
                parts.append(codes)
            elif len(codes):
                hop = self._config.hop_length
                yield Block(codes, scale, min(samples, given * hop) - (given - len(codes)) * hop)
        if parts and given:
            held = min(samples, given * self._config.hop_length)
            yield Block(np.concatenate(parts), scale, held)
        if given < frames:
            self._cut()

    def _scale(self) -> float | None:
        data = read_up_to(self._file, SCALE.size)
        if len(data) < SCALE.size:
            self._cut()
            return None
        scale = float(SCALE.unpack(data)[0])
        if not (math.isfinite(scale) and scale > 0):
            raise PacketError(f"a segment's scale is {scale}; it must be a positive number")
        return scale

    def _cut(self) -> None:
        self.truncated = True
        if not self._salvage:
            raise PacketError(
                f"the stream ends before the {self.header.samples} samples that its header "
                "announces; encodec-rt decode --salvage decodes what is there"
            )
