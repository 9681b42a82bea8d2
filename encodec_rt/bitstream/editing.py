"""Scaling, cutting and joining ``.encodec`` streams as they are: no model, no decoding.

Packets keep their bytes; layers are left out, and positions and headers are rewritten.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from encodec_rt.bitstream.container import StreamHeader, codebooks_for_kbps
from encodec_rt.bitstream.container_reader import Gap, Located, PacketReader, skip_to
from encodec_rt.bitstream.container_writer import FILE_PAGE_S, PacketWriter
from encodec_rt.bitstream.ogg import ByteSink
from encodec_rt.errors import InputError, PacketError
from encodec_rt.pcm import sample_at


def scale(source: BinaryIO, target: ByteSink, bandwidth_kbps: float) -> int:
    """The streams of ``source`` with the layers that fit ``bandwidth_kbps`` -> bytes written.

    Raises ConfigError if not even the first layer fits, and PacketError.
    """
    reader, size, serials = PacketReader(source), 0, set[int]()
    while True:
        layers = tuple(codebooks_for_kbps(reader.header, bandwidth_kbps))
        header = replace(reader.header, layers=layers)
        writer = _writer(target, header, reader, serials)
        size += _copy(reader, writer, layers=len(layers))
        if not reader.next_link():
            return size


def join(sources: Sequence[BinaryIO], target: ByteSink) -> int:
    """All streams of ``sources``, one after the other, as a chain -> bytes written.

    Each is decoded by itself, so the sound is that of the parts. Raises PacketError.
    """
    joiner = Joiner(target)
    for source in sources:
        joiner.add(source)
    return joiner.bytes_written


class Joiner:
    """Appends streams to ``target``, as ``join`` does."""

    def __init__(self, target: ByteSink) -> None:
        self.bytes_written = 0
        self._target, self._serials = target, set[int]()

    def add(self, source: BinaryIO) -> None:
        """Append all streams of ``source``. Raises PacketError."""
        reader = PacketReader(source)
        while True:
            writer = _writer(self._target, reader.header, reader, self._serials)
            self.bytes_written += _copy(reader, writer)
            if not reader.next_link():
                return


def cut(source: BinaryIO, target: ByteSink, begin_s: float, end_s: float | None) -> int:
    """The part from ``begin_s`` to ``end_s`` of a file with one stream -> bytes written.

    Whole packets are kept, from far enough before the cut that the decoder's state has forgotten
    its start; the new stream says how much to skip. Raises InputError for times outside the stream,
    and PacketError.
    """
    reader = PacketReader(source)
    header = reader.header
    rate, skipped = header.sampling_rate, header.pre_skip
    begin = skipped + sample_at(begin_s, rate)
    end = None if end_s is None else skipped + sample_at(end_s, rate)
    if end is not None and end <= begin:
        raise InputError(f"from {begin_s} s to {end_s} s; the second has to be after the first")
    kept = _whole(skip_to(iter(reader), max(0, begin - header.pre_roll)))
    first = next(kept, None)
    if first is None:
        raise InputError(f"from {begin_s:g} s; the stream ends after {_length_s(reader):.2f} s")
    start = header.start if first.start == 0 else "zero"
    edited = replace(header, start=start, pre_skip=begin - first.start)
    writer = _writer(target, edited, reader, set())
    item: Located | None = first
    while item is not None:
        writer.write(item.packet)
        final = item
        item = next(kept, None) if end is None or item.end < end else None
    if final.end <= begin:
        raise InputError(f"from {begin_s:g} s; the stream ends after {_length_s(reader):.2f} s")
    # Every segment except the last extends beyond its final samples.
    writer.finish((final.end if end is None else min(end, final.end)) - first.start)
    if final.last and reader.next_link():
        raise InputError("a chain of streams; cut each one before joining them")
    return writer.bytes_written


def _whole(items: Iterator[Located | Gap]) -> Iterator[Located]:
    for item in items:
        if isinstance(item, Gap):
            raise PacketError(f"{item.reason}; only undamaged streams can be edited")
        yield item


def _length_s(reader: PacketReader) -> float:
    return (reader.position - reader.header.pre_skip) / reader.header.sampling_rate


def _writer(
    target: ByteSink, header: StreamHeader, reader: PacketReader, serials: set[int]
) -> PacketWriter:
    """A writer with a serial number that the file does not have yet."""
    serial = zlib.crc32(header.to_bytes())
    while serial in serials:
        serial = (serial + 1) & 0xFFFFFFFF
    serials.add(serial)
    return PacketWriter(target, header, reader.comments, page_s=FILE_PAGE_S, serial=serial)


def _copy(reader: PacketReader, writer: PacketWriter, layers: int | None = None) -> int:
    begin = end = None
    for item in _whole(iter(reader)):
        begin = item.start if begin is None else begin
        end = item.end
        packet = item.packet if layers is None else item.packet.keep(layers)
        writer.write(packet)
    writer.finish(0 if end is None or begin is None else end - begin)
    return writer.bytes_written
