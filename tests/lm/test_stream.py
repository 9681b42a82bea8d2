from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_reader import (
    CodeBlock,
    Gap,
    Located,
    PacketReader,
    read_codes,
    skip_to,
)
from encodec_rt.bitstream.container_writer import ContainerWriter
from encodec_rt.bitstream.ogg import PageReader
from encodec_rt.errors import CodecError, PacketError
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.integer import LmState
from encodec_rt.lm.stepping import LmStepper
from tests.bitstream.test_container import mutated
from tests.support.lms import likely_codes, random_lm
from tests.support.narrow import all_of

MODEL = random_lm()
HEADER = StreamHeader(800, 1, 8, 16, MODEL.config.layers)
CODES = likely_codes(MODEL, 400)


def written(page_s: float) -> bytes:
    file = io.BytesIO()
    writer = ContainerWriter(file, HEADER, LmCoder(MODEL), page_s=page_s)
    for start in range(0, 400, 33):
        writer.write(CODES[start : start + 33])
    writer.finish(3200)
    return file.getvalue()


WRITTEN = written(1.0)


def read(
    data: bytes, *, salvage: bool = False
) -> tuple[PacketReader, list[CodeBlock | Gap]] | tuple[PacketReader, list[CodeBlock]]:
    reader = PacketReader(io.BytesIO(data), salvage=salvage)
    return reader, list(read_codes(reader, reader.header, LmCoder(MODEL), salvage=salvage))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_pieces_of_any_size_are_written_to_the_same_bytes(sizes: list[int]) -> None:
    file, start = io.BytesIO(), 0
    writer = ContainerWriter(file, HEADER, LmCoder(MODEL), page_s=1.0)
    for size in [*sizes, 400]:
        piece = CODES[start : start + size].copy()
        writer.write(piece)
        piece[:] = 0  # What was written is the writer's own.
        start += size
    writer.finish(3200)
    assert file.getvalue() == WRITTEN


def test_a_live_frame_is_coded_as_it_comes_and_not_when_its_packet_ends() -> None:
    coder = LmCoder(MODEL)
    frames = [0]

    def counting(depth: int) -> LmStepper:
        stepper = LmStepper(MODEL, depth)
        begin = stepper.begin

        def counted(state: LmState) -> None:
            frames[0] += 1
            begin(state)

        stepper.begin = counted  # type: ignore[method-assign]
        return stepper

    stepper = counting(3)
    coder.stepper = lambda depth: stepper  # type: ignore[method-assign]
    writer = ContainerWriter(io.BytesIO(), HEADER, coder, page_s=1.0)
    for index, frame in enumerate(CODES):
        writer.write(frame[None])
        assert frames[0] == index + 1
    writer.finish(3200)
    assert frames[0] == len(CODES)


@pytest.mark.parametrize("page_s", [1.0, 2.0, 100.0])
def test_codes_survive_and_contexts_restart_with_pages(page_s: float) -> None:
    data = written(page_s)
    _, items = read(data)
    assert np.array_equal(np.concatenate([item.codes for item in all_of(CodeBlock, items)]), CODES)
    reader = PacketReader(io.BytesIO(data))
    restarts = [item.start for item in all_of(Located, reader) if item.packet.restart]
    assert restarts == list(range(0, 3200, round(page_s * 800)))[: len(restarts)]
    assert len(restarts) == len(list(PageReader(io.BytesIO(data)))) - 2


def test_a_flipped_bit_costs_its_block_and_no_more() -> None:
    data = written(1.0)
    begin = list(PageReader(io.BytesIO(data)))[2].offset
    chance = random.Random(3)
    for _ in range(12):
        damaged = bytearray(data)
        damaged[chance.randrange(begin, len(data))] ^= 1 << chance.randrange(8)
        with pytest.raises(PacketError):
            read(bytes(damaged))
        _, items = read(bytes(damaged), salvage=True)
        lost = sum(item.end - item.start for item in items if isinstance(item, Gap))
        assert lost <= 800
        for item in items:
            if isinstance(item, CodeBlock):
                first, (frames, books) = item.start // 8, item.codes.shape
                assert np.array_equal(item.codes, CODES[first : first + frames, :books])


def test_mutated_streams_give_codes_gaps_or_typed_errors() -> None:
    """As the ten thousand of test_container, with the language model that they have not."""
    file = io.BytesIO()
    writer = ContainerWriter(file, replace(HEADER, sampling_rate=80), LmCoder(MODEL), page_s=1.0)
    writer.write(CODES[:35])
    writer.finish(280)
    chance, salvaged = random.Random(7), 0
    for _ in range(400):
        data = mutated(file.getvalue(), chance)
        for salvage in (False, True):
            try:
                _, items = read(data, salvage=salvage)
            except CodecError:
                continue
            salvaged += salvage
            assert all(isinstance(item, CodeBlock) or item.reason for item in items)
    assert salvaged > 100


def test_seeking_decodes_from_the_nearest_restart() -> None:
    reader = PacketReader(io.BytesIO(written(2.0)))
    located = skip_to(iter(reader), 2500)
    items = list(read_codes(located, reader.header, LmCoder(MODEL), salvage=False))
    assert items[0].start == 1600
    assert np.array_equal(
        np.concatenate([item.codes for item in all_of(CodeBlock, items)]), CODES[200:]
    )
