"""Codes as bits, and the payload of one live packet (docs/format.md has the byte layout).

It needs only numpy, so that a relay or a recorder can read packets without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encodec_rt.arrays import is_count
from encodec_rt.errors import InputError, PacketError
from encodec_rt.types import Codes

MAX_FRAMES = 4
MAX_CODEBOOKS = 32
MAX_BACK = 16
MAX_REDUNDANT_FRAMES = 4
MAX_REDUNDANT_CODEBOOKS = 4
MAX_BITS = 16


@dataclass(frozen=True, eq=False)
class Redundancy:
    """A second, coarser copy of earlier frames: ``codes`` uint16 [frames, first codebooks].

    Its first frame is ``back`` frames before the packet's own first frame.
    """

    back: int
    codes: Codes


@dataclass(frozen=True, eq=False)
class Packet:
    """One to four frames, ``codes`` uint16 [frames, codebooks], with redundancy or without."""

    codes: Codes
    redundancy: Redundancy | None = None


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` each take, the last byte filled with zeros."""
    return -(-count * bits // 8)


def group_size(bits: int) -> int:
    """The smallest number of codes of ``bits`` each that fills whole bytes."""
    return 8 // math.gcd(bits, 8)


def pack_codes(codes: NDArray[np.integer], bits: int) -> bytes:
    """The bytes of ``codes`` [frames, codebooks] in memory order, least significant bit first.

    The order is that of ``.ecdc`` files: by time, then by codebook, with the last byte padded with
    zero bits. Raises InputError for a code that does not fit into ``bits``.
    """
    _check_bits(bits)
    flat = np.asarray(codes).reshape(-1)
    if not np.issubdtype(flat.dtype, np.integer):
        raise InputError(f"codes of type {flat.dtype}; whole numbers are packed")
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        given = f"codes from {flat.min()} to {flat.max()}"
        raise InputError(f"{given}; {bits} bits hold 0 to {(1 << bits) - 1}")
    planes = flat.astype(np.uint16)[:, None] >> np.arange(bits, dtype=np.uint16) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack_codes(data: bytes, bits: int, shape: tuple[int, int]) -> Codes:
    """Codes uint16 of ``shape`` (frames, codebooks) from what ``pack_codes`` made of them.

    Raises PacketError unless ``data`` has exactly the bytes that ``shape`` takes.
    """
    _check_bits(bits)
    count = shape[0] * shape[1]
    if len(data) != packed_size(count, bits):
        raise PacketError(
            f"{len(data)} bytes for {shape[0]} frames of {shape[1]} codebooks; "
            f"they take {packed_size(count, bits)}"
        )
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint16)
    codes: Codes = (planes.reshape(*shape, bits) * weights).sum(axis=2, dtype=np.uint16)
    return codes


def encode_packet(packet: Packet, *, bits: int) -> bytes:
    """The payload of ``packet``: contents byte, codes, and redundancy if there is any.

    Raises InputError for more frames or codebooks than a payload can name, or too large codes.
    """
    frames, books = _shape(packet.codes, MAX_FRAMES, MAX_CODEBOOKS)
    extra = packet.redundancy
    contents = frames - 1 << 6 | books - 1 << 1 | (extra is not None)
    payload = bytes([contents]) + pack_codes(packet.codes, bits)
    if extra is None:
        return payload
    count, coarse = _shape(extra.codes, MAX_REDUNDANT_FRAMES, MAX_REDUNDANT_CODEBOOKS)
    if not count <= extra.back <= MAX_BACK:
        reach = f"from {count} to {MAX_BACK}"
        raise InputError(f"redundancy for {count} frames from {extra.back} frames back; {reach}")
    where = extra.back - 1 << 4 | count - 1 << 2 | coarse - 1
    return payload + bytes([where]) + pack_codes(extra.codes, bits)


def parse_packet(data: bytes, *, bits: int, max_codebooks: int = MAX_CODEBOOKS) -> Packet:
    """The packet whose payload is ``data``; its arrays own their memory.

    Every payload has one meaning and every packet one payload: an inexact length, non-zero padding
    bits, more than ``max_codebooks`` or a copy of the packet's own frames raise PacketError, and
    nothing else is ever raised.
    """
    if not data:
        raise PacketError("an empty payload; the contents byte is missing")
    contents = data[0]
    frames, books = (contents >> 6) + 1, (contents >> 1 & 31) + 1
    if books > max_codebooks:
        raise PacketError(f"{books} codebooks in a packet; {max_codebooks} are accepted")
    end = 1 + packed_size(frames * books, bits)
    if not contents & 1:
        return Packet(_unpack_exact(data[1:], bits, (frames, books)))
    if len(data) <= end:
        raise PacketError(f"{len(data)} bytes; the redundancy announced begins after {end}")
    where = data[end]
    back, count, coarse = (where >> 4) + 1, (where >> 2 & 3) + 1, (where & 3) + 1
    if count > back:
        raise PacketError(f"redundancy for {count} frames from {back} back overlaps the packet")
    if coarse > max_codebooks:
        raise PacketError(f"{coarse} redundant codebooks; {max_codebooks} are accepted")
    codes = _unpack_exact(data[1:end], bits, (frames, books))
    copies = _unpack_exact(data[end + 1 :], bits, (count, coarse))
    return Packet(codes, Redundancy(back, copies))


def _unpack_exact(data: bytes, bits: int, shape: tuple[int, int]) -> Codes:
    codes = unpack_codes(data, bits, shape)
    used = shape[0] * shape[1] * bits % 8
    if used and data[-1] >> used:
        raise PacketError("the padding bits in the last byte are not zero")
    return codes


def _shape(codes: Codes, most_frames: int, most_books: int) -> tuple[int, int]:
    shape = np.shape(codes)
    if len(shape) != 2 or not (1 <= shape[0] <= most_frames and 1 <= shape[1] <= most_books):
        raise InputError(
            f"codes of shape {shape}; [frames, codebooks] with 1 to {most_frames} frames "
            f"and 1 to {most_books} codebooks"
        )
    return shape[0], shape[1]


def _check_bits(bits: int) -> None:
    if not (is_count(bits) and bits <= MAX_BITS):
        raise InputError(f"{bits!r} bits per code; from 1 to {MAX_BITS}")
