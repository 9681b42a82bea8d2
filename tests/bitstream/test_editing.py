from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream import editing
from encodec_rt.bitstream.container_reader import CodeBlock, PacketReader, read_codes
from encodec_rt.bitstream.container_writer import LIVE_PAGE_S
from encodec_rt.errors import ConfigError, InputError, PacketError
from tests.bitstream.test_container import assert_accepted
from tests.support.narrow import all_of
from tests.support.streams import codes_of, mono_stream, read, stereo_stream

ROOT = Path(__file__).resolve().parents[2]


def edited(operation: Callable[..., int], data: bytes, *arguments: float | None) -> bytes:
    target = io.BytesIO()
    size = operation(io.BytesIO(data), target, *arguments)
    assert size == len(target.getvalue())
    return target.getvalue()


@given(
    st.integers(0, 400_000), st.sampled_from([(1.5, 2), (3.0, 4), (5.9, 4), (6.0, 8), (24.0, 8)])
)
@settings(max_examples=25, deadline=None)
def test_scaling_keeps_the_first_layers_and_nothing_else_changes(
    samples: int, wanted: tuple[float, int]
) -> None:
    bandwidth, books = wanted
    stream = mono_stream(samples, 8, page_s=LIVE_PAGE_S)
    reader, items = read(edited(editing.scale, stream.data, bandwidth), stream.coder)
    assert np.array_equal(codes_of(items, books), stream.codes[:, :books])
    assert sum(reader.header.layers) == books
    assert (items[-1].end if items else 0) == samples
    assert reader.ended


def test_scaling_below_the_first_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"first layer has 1\.5 kbps"):
        edited(editing.scale, mono_stream(5000).data, 1.0)


@given(st.integers(1, 300_000), st.integers(1, 200_000), st.sampled_from([LIVE_PAGE_S, 8.0]))
@settings(max_examples=40, deadline=None)
def test_a_cut_has_the_codes_of_its_time_and_of_a_second_before(
    begin: int, length: int, page_s: float
) -> None:
    stream = mono_stream(600_000, 2, page_s=page_s)
    end = begin + length
    data = edited(editing.cut, stream.data, begin / 24_000, end / 24_000)
    reader, items = read(data, stream.coder)
    codes, skip = codes_of(items, 2), reader.header.pre_skip
    first = (begin - skip) // 320
    assert np.array_equal(codes, stream.codes[first : first + len(codes)])
    assert items[0].start == 0
    assert items[-1].end - skip == length
    assert (begin - skip) % 320 == 0
    assert skip >= min(begin, 24_000)
    assert skip < 48_000 + 320
    assert reader.header.start == ("exact" if begin == skip else "zero")


def test_a_cut_of_a_cut_is_the_cut_of_the_whole() -> None:
    stream = mono_stream(600_000, 2)
    once = edited(editing.cut, stream.data, 10.0, 14.0)
    twice = edited(editing.cut, once, 1.5, 2.0)
    at_once = edited(editing.cut, stream.data, 11.5, 12.0)
    pieces = [read(data, stream.coder) for data in (twice, at_once)]
    for reader, items in pieces:
        assert items[-1].end - reader.header.pre_skip == 12_000
    assert np.array_equal(codes_of(pieces[0][1], 2)[-30:], codes_of(pieces[1][1], 2)[-30:])


@pytest.mark.parametrize(("begin", "end"), [(0.0, None), (1.2, 2.9), (2.0, 3.125), (3.0, None)])
def test_segments_are_cut_with_the_one_that_fades_in(begin: float, end: float | None) -> None:
    stream = stereo_stream(150_000)
    reader, items = read(edited(editing.cut, stream.data, begin, end), stream.coder)
    skip = reader.header.pre_skip
    assert items[-1].end - skip == round((end or 3.125) * 48_000) - round(begin * 48_000)
    assert skip >= min(480, round(begin * 48_000))
    whole = [item.codes for item in all_of(CodeBlock, read(stream.data, stream.coder)[1])]
    first = (round(begin * 48_000) - skip) // 47_520
    for item, codes in zip(all_of(CodeBlock, items), whole[first:], strict=False):
        assert np.array_equal(item.codes, codes)


def test_times_that_are_not_there_are_refused() -> None:
    data = mono_stream(48_000).data
    for begin, end in [(3.0, 4.0), (2.0, None), (1.0, 1.0), (-1.0, 1.0)]:
        with pytest.raises(InputError):
            edited(editing.cut, data, begin, end)


def test_joined_streams_are_a_chain_of_what_they_were() -> None:
    streams = [mono_stream(30_000, 4), mono_stream(30_000, 4, seed=2), mono_stream(50_000, 8)]
    target = io.BytesIO()
    size = editing.join([io.BytesIO(stream.data) for stream in streams], target)
    assert size == len(target.getvalue())
    target.seek(0)
    reader, serials = PacketReader(target), []
    for index, stream in enumerate(streams):
        serials.append(reader.serial)
        items = list(read_codes(reader, reader.header, stream.coder, salvage=False))
        assert np.array_equal(codes_of(items, stream.codes.shape[1]), stream.codes)
        assert reader.next_link() == (index < 2)
    assert len(set(serials)) == 3


def test_a_chain_is_scaled_link_by_link() -> None:
    target = io.BytesIO()
    streams = [mono_stream(30_000, 4), mono_stream(50_000, 8)]
    editing.join([io.BytesIO(stream.data) for stream in streams], target)
    reader = PacketReader(io.BytesIO(edited(editing.scale, target.getvalue(), 1.5)))
    for stream in streams:
        items = list(read_codes(reader, reader.header, stream.coder, salvage=False))
        assert np.array_equal(codes_of(items, 2), stream.codes[:, :2])
        reader.next_link()


def test_a_damaged_stream_is_not_edited() -> None:
    data = bytearray(mono_stream(60_000).data)
    data[-50] ^= 1
    edits: list[tuple[Callable[..., int], tuple[float, ...]]] = [
        (editing.scale, (1.5,)),
        (editing.cut, (0.5, 1.0)),
    ]
    for operation, arguments in edits:
        with pytest.raises(PacketError):
            edited(operation, bytes(data), *arguments)


@pytest.mark.skipif(shutil.which("oggz") is None, reason="oggz-tools is not installed")
def test_independent_tools_accept_what_is_edited(tmp_path: Path) -> None:
    stream = mono_stream(300_000, 8)
    joined = io.BytesIO()
    editing.join([io.BytesIO(stream.data), io.BytesIO(mono_stream(0).data)], joined)
    for data in (
        joined.getvalue(),
        edited(editing.scale, stream.data, 1.5),
        edited(editing.cut, stream.data, 2.0, 7.25),
        edited(editing.cut, stereo_stream(200_000).data, 2.0, 3.25),
    ):
        path = tmp_path / "a.encodec"
        path.write_bytes(data)
        assert_accepted(path)


def test_editing_loads_no_torch() -> None:
    code = "import encodec_rt.bitstream.editing, sys; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "False"
