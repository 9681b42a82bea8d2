"""``.encodec`` streams of random codes, for tests of the container."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from encodec_rt.bitstream.coding import CodeCoder, CodeTables, RawCoder, TableCoder, to_counts
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_reader import CodeBlock, Gap, PacketReader, read_codes
from encodec_rt.bitstream.container_writer import FILE_PAGE_S, ContainerWriter
from encodec_rt.config import PRESETS
from encodec_rt.types import Codes

MONO = PRESETS["encodec_24khz"]
STEREO = PRESETS["encodec_48khz"]
WEIGHTS = bytes(range(32))


class Trickle(io.BytesIO):
    """A file that returns one to three bytes at a time, as a pipe may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(-1 if size is None else size, 1 + self.tell() % 3))


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream's bytes and its content: codes [frames, Q], samples, scales, and its coder."""

    data: bytes
    codes: Codes
    samples: int
    coder: CodeCoder
    scales: tuple[float, ...] = ()


def tables(codebook_size: int = 1024, books: int = 32, seed: int = 0) -> CodeTables:
    """Tables in which some codes are far more frequent than others."""
    rng = np.random.default_rng(seed)
    rows = [
        to_counts((rng.random(codebook_size) ** 8 * 1e6).astype(np.int64)) for _ in range(books)
    ]
    return CodeTables(np.stack(rows).astype(np.uint16), WEIGHTS)


def draw(table: CodeTables, frames: int, books: int, seed: int = 0) -> Codes:
    """Random codes [frames, books], distributed as in ``table``."""
    rng = np.random.default_rng(seed)
    size = table.counts.shape[1]
    columns = [rng.choice(size, frames, p=row / 65536) for row in table.counts[:books]]
    return np.stack(columns, axis=1).astype(np.uint16)


def mono_stream(
    samples: int,
    books: int = 8,
    *,
    raw: bool = False,
    seed: int = 0,
    step: int = 7,
    page_s: float = FILE_PAGE_S,
) -> Stream:
    """A stream of the 24 kHz model, written ``step`` frames at a time."""
    table = tables()
    coder: CodeCoder = RawCoder(1024) if raw else TableCoder(table)
    codes = draw(table, -(-samples // 320), books, seed)
    header = StreamHeader.for_model(MONO, books, start="exact", codes_sha256=WEIGHTS)
    file = io.BytesIO()
    writer = ContainerWriter(file, header, coder, page_s=page_s, fields=[("MODEL", "m")])
    for start in range(0, len(codes), step):
        writer.write(codes[start : start + step])
    assert writer.finish(samples) == len(file.getvalue())
    return Stream(file.getvalue(), codes, samples, coder)


def stereo_stream(samples: int, books: int = 4, *, page_s: float = FILE_PAGE_S) -> Stream:
    """A stream of the 48 kHz model, in segments with scales."""
    from encodec_rt.bitstream.ecdc import segments

    table = tables()
    coder = TableCoder(table)
    header = StreamHeader.for_model(STEREO, books, start="exact", codes_sha256=WEIGHTS)
    file = io.BytesIO()
    writer = ContainerWriter(file, header, coder, page_s=page_s)
    parts, scales = [np.empty((0, books), np.uint16)], []
    for index, (_, frames) in enumerate(segments(STEREO, samples)):
        parts.append(draw(table, frames, books, index))
        scales.append(float(np.float32(0.1 + 0.01 * index)))
        writer.write(parts[-1], scales[-1])
    writer.finish(samples)
    return Stream(file.getvalue(), np.concatenate(parts), samples, coder, tuple(scales))


def read(
    data: bytes, coder: CodeCoder, *, salvage: bool = False
) -> tuple[PacketReader, list[CodeBlock | Gap]]:
    """A reader of the first stream in ``data``, and everything that it returns."""
    reader = PacketReader(io.BytesIO(data), salvage=salvage)
    return reader, list(read_codes(reader, reader.header, coder, salvage=salvage))


def codes_of(items: list[CodeBlock | Gap], books: int) -> Codes:
    """The codes [frames, books] of ``items``, which must not contain gaps."""
    blocks = [item for item in items if isinstance(item, CodeBlock)]
    assert len(blocks) == len(items)
    return np.concatenate([np.empty((0, books), np.uint16), *(block.codes for block in blocks)])
