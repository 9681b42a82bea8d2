"""How the codes of a packet become bytes, layer by layer: packed, or by a table per codebook.

A language model is a third coder with the same methods (``encodec_rt.lm``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.packet import pack_codes, packed_size, unpack_codes
from encodec_rt.bitstream.payloads import PacketEncoder, Payload, WholePacket
from encodec_rt.bitstream.range_coder import TOTAL, Distribution, SymbolDecoder, SymbolEncoder
from encodec_rt.errors import InputError, PacketError, WeightsError
from encodec_rt.pretrained import default_folder
from encodec_rt.types import Codes

TABLES_PATTERN = "code_tables*.safetensors"
NO_HASH = bytes(32)


class Coding(IntEnum):
    """The coding of the layers, as numbered in an identification header."""

    RAW = 0
    TABLES = 1
    LANGUAGE_MODEL = 2


class CodeCoder(Protocol):
    """Codes of a packet to payloads and back.

    ``layers`` are the codebooks of each layer of the stream; a packet may have fewer layers, as
    ``codes`` [frames, codebooks] and ``payloads`` show.
    """

    coding: Coding
    sha256: bytes
    needs_history: bool
    """Whether a packet can only be decoded after all others since the last restart."""

    def fresh(self) -> CodeCoder:
        """The same for another stream, without loading anything again."""

    def encode(self, codes: Codes, layers: Sequence[int], *, restart: bool) -> list[Payload]:
        """One payload per layer."""

    def packet(self, layers: Sequence[int], *, restart: bool) -> PacketEncoder:
        """The same for frames that have not all arrived yet."""

    def decode(
        self, payloads: Sequence[Payload], layers: Sequence[int], frames: int, *, restart: bool
    ) -> Codes:
        """The codes uint16 [frames, codebooks of as many layers as there are payloads]."""


def split_layers(codes: Codes, layers: Sequence[int]) -> Iterator[Codes]:
    """``codes`` [frames, codebooks] cut into the layers that they fill.

    Raises InputError for a number of codebooks that is not that of one or more whole layers.
    """
    start = 0
    for books in layers:
        if start == codes.shape[1] and start:
            return
        if start + books > codes.shape[1]:
            raise InputError(
                f"{codes.shape[1]} codebooks; the stream has layers of {tuple(layers)}"
            )
        yield codes[:, start : start + books]
        start += books
    if start != codes.shape[1]:
        raise InputError(f"{codes.shape[1]} codebooks; the stream has layers of {tuple(layers)}")


class RawCoder:
    """Codes as they are, packed."""

    coding = Coding.RAW
    sha256 = NO_HASH
    needs_history = False

    def __init__(self, codebook_size: int) -> None:
        self._bits = (codebook_size - 1).bit_length()

    def fresh(self) -> RawCoder:
        """Itself, as it has no state."""
        return self

    def encode(self, codes: Codes, layers: Sequence[int], *, restart: bool) -> list[Payload]:
        """One payload per layer."""
        return [Payload(True, pack_codes(part, self._bits)) for part in split_layers(codes, layers)]

    def packet(self, layers: Sequence[int], *, restart: bool) -> WholePacket:
        """A packet that is coded when all its frames have arrived."""
        return WholePacket(partial(self.encode, layers=layers, restart=restart))

    def decode(
        self, payloads: Sequence[Payload], layers: Sequence[int], frames: int, *, restart: bool
    ) -> Codes:
        """The codes. Raises PacketError for a wrong length."""
        parts = []
        for payload, books in zip(payloads, layers, strict=False):
            if not payload.raw:
                raise PacketError("a range-coded layer in a stream of packed codes")
            parts.append(unpack_raw(payload.data, self._bits, frames, books))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class CodeTables:
    """How often each code of each codebook comes: ``counts`` [codebooks, codebook_size].

    Every count is at least 1, and those of a codebook add up to TOTAL. ``codes_sha256`` names
    the model whose codes were counted.
    """

    counts: NDArray[np.uint16]
    codes_sha256: bytes

    def __post_init__(self) -> None:
        """Raise WeightsError unless these are counts of codes."""
        counts = self.counts
        good = counts.ndim == 2 and counts.dtype == np.uint16 and counts.shape[1] >= 2
        if not (good and counts.min() >= 1 and (counts.sum(axis=1, dtype=np.int64) == TOTAL).all()):
            raise WeightsError(
                f"code tables of {counts.dtype} {counts.shape} whose rows are not "
                f"counts of at least 1 that add up to {TOTAL}"
            )

    @property
    def sha256(self) -> bytes:
        """The hash by which streams name them: of the shape and all counts, little-endian."""
        shape = struct.pack("<II", *self.counts.shape)
        return hashlib.sha256(shape + self.counts.astype("<u2").tobytes()).digest()

    @classmethod
    def from_codes(cls, codes: Codes, codebook_size: int, codes_sha256: bytes) -> CodeTables:
        """Tables fitted to ``codes`` [frames, codebooks]; the same on every machine."""
        rows = [np.bincount(book, minlength=codebook_size) for book in codes.T]
        return cls(np.stack([to_counts(row) for row in rows]).astype(np.uint16), codes_sha256)

    @classmethod
    def load(cls, path: Path) -> CodeTables:
        """Tables from a file that ``save`` wrote. Raises WeightsError for any other."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                return cls(file.get_tensor("counts"), bytes.fromhex(codes_sha256_of(metadata)))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(f"{path} does not hold code tables: {error}") from None

    def save(self, path: Path) -> None:
        """Write a safetensors file, the same bytes for the same tables."""
        from safetensors.numpy import save_file

        save_file({"counts": self.counts}, path, {"codes_sha256": self.codes_sha256.hex()})


def to_counts(frequencies: NDArray[np.integer]) -> NDArray[np.int64]:
    """Counts of at least 1 that add up to TOTAL, in proportion to whole ``frequencies`` [symbols].

    In integers: the floor of each share, and the rest to the most frequent symbol (the lowest index
    of equals). All-zero frequencies give equal counts.
    """
    given = frequencies.astype(np.int64)
    if not given.any():
        given = np.ones_like(given)
    free = TOTAL - len(given)
    if free < 0:
        raise InputError(f"{len(given)} symbols; a table has at most {TOTAL}")
    counts = 1 + given * free // int(given.sum())
    counts[int(given.argmax())] += TOTAL - int(counts.sum())
    return counts


class TableCoder:
    """Range coding with a fixed table per codebook. Packets are independent."""

    coding = Coding.TABLES
    needs_history = False

    def __init__(self, tables: CodeTables) -> None:
        self.sha256 = tables.sha256
        self._bits = (tables.counts.shape[1] - 1).bit_length()
        self._books = [Distribution(row.astype(np.int64)) for row in tables.counts]

    def fresh(self) -> TableCoder:
        """Itself, as it has no state."""
        return self

    def encode(self, codes: Codes, layers: Sequence[int], *, restart: bool) -> list[Payload]:
        """One payload per layer, packed if that is shorter."""
        payloads, first = [], 0
        for part in split_layers(codes, layers):
            encoder = SymbolEncoder()
            for book, symbols in enumerate(part.T, first):
                encoder.encode(symbols, self._book(book))
            data = encoder.finish()
            first += part.shape[1]
            if len(data) < packed_size(part.size, self._bits):
                payloads.append(Payload(False, data))
            else:
                payloads.append(Payload(True, pack_codes(part, self._bits)))
        return payloads

    def packet(self, layers: Sequence[int], *, restart: bool) -> WholePacket:
        """A packet that is coded when all its frames have arrived."""
        return WholePacket(partial(self.encode, layers=layers, restart=restart))

    def decode(
        self, payloads: Sequence[Payload], layers: Sequence[int], frames: int, *, restart: bool
    ) -> Codes:
        """The codes. Raises PacketError for invalid bytes."""
        parts, first = [], 0
        for payload, books in zip(payloads, layers, strict=False):
            if payload.raw:
                parts.append(unpack_raw(payload.data, self._bits, frames, books))
            else:
                decoder = SymbolDecoder(payload.data)
                columns = range(first, first + books)
                found = [decoder.decode(self._book(book), frames) for book in columns]
                parts.append(np.stack(found, axis=1).astype(np.uint16))
            first += books
        return np.concatenate(parts, axis=1)

    def _book(self, book: int) -> Distribution:
        if book >= len(self._books):
            raise PacketError(f"codebook {book + 1}; the code tables have {len(self._books)}")
        return self._books[book]


def unpack_raw(data: bytes, bits: int, frames: int, books: int) -> Codes:
    """A packed layer. Raises PacketError unless its length is exact and its padding zero."""
    codes = unpack_codes(data, bits, (frames, books))
    used = codes.size * bits % 8
    if used and data[-1] >> used:
        raise PacketError("the padding bits in the last byte of a layer are not zero")
    return codes


def codes_sha256_of(metadata: Mapping[str, str]) -> str:
    """Whose codes a file of tables or of a language model is for; early files name all weights."""
    return metadata.get("codes_sha256") or metadata["weights_sha256"]


def tables_for_model(codes_sha256: bytes, folder: Path | None = None) -> CodeTables | None:
    """The tables for the codes of a model, from its own folder or the package's; None without."""
    found = [tables for tables in _all_tables(folder) if tables.codes_sha256 == codes_sha256]
    return found[-1] if found else None


def tables_by_hash(sha256: bytes, folder: Path | None = None) -> CodeTables:
    """The tables that a stream names. Raises WeightsError if they are not available."""
    for tables in _all_tables(folder):
        if tables.sha256 == sha256:
            return tables
    raise WeightsError(
        f"the stream needs the code tables {sha256.hex()[:16]}, which are neither in this "
        f"installation nor in the model's folder; put their {TABLES_PATTERN} file there"
    )


def coder_for(
    coding: Coding, sha256: bytes, codebook_size: int, *, folder: Path | None = None
) -> CodeCoder:
    """The decoder for a stream of that coding. Raises WeightsError if it is not available."""
    if coding is Coding.RAW:
        return RawCoder(codebook_size)
    if coding is Coding.TABLES:
        tables = tables_by_hash(sha256, folder)
        if tables.counts.shape[1] != codebook_size:
            raise PacketError(
                f"codebooks of {codebook_size} in a stream with tables for {tables.counts.shape[1]}"
            )
        return TableCoder(tables)
    raise WeightsError(
        f"the stream needs the language model {sha256.hex()[:16]}; name its file with --lm"
    )


def _all_tables(folder: Path | None) -> Iterator[CodeTables]:
    for place in filter(None, (default_folder(), folder)):
        for path in sorted(place.glob(TABLES_PATTERN)):
            yield CodeTables.load(path)
