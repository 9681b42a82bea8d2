from __future__ import annotations

import io
import itertools
import random
import re
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream.coding import (
    CodeTables,
    Coding,
    RawCoder,
    TableCoder,
    coder_for,
    tables_by_hash,
)
from encodec_rt.bitstream.container import Comments, StreamHeader
from encodec_rt.bitstream.container_packet import DataPacket, varint
from encodec_rt.bitstream.container_reader import CodeBlock, Gap, PacketReader, read_codes
from encodec_rt.bitstream.container_writer import LIVE_PAGE_S, ContainerWriter, PacketWriter
from encodec_rt.bitstream.ogg import Page, PageReader
from encodec_rt.bitstream.payloads import Payload
from encodec_rt.bitstream.range_coder import Distribution, SymbolDecoder, SymbolEncoder
from encodec_rt.errors import (
    CodecError,
    ConfigError,
    InputError,
    PacketError,
    StateError,
    WeightsError,
)
from tests.support.models import tiny_config
from tests.support.narrow import all_of, present
from tests.support.streams import (
    MONO,
    STEREO,
    WEIGHTS,
    codes_of,
    draw,
    mono_stream,
    read,
    stereo_stream,
    tables,
)

HEADER = StreamHeader.for_model(MONO, 8, start="exact", codes_sha256=WEIGHTS)


def pages_of(data: bytes) -> list[Page]:
    return all_of(Page, PageReader(io.BytesIO(data)))


def joined(pages: Iterable[Page]) -> bytes:
    return b"".join(page.to_bytes() for page in pages)


@given(
    st.integers(0, 700_000),
    st.sampled_from([1, 2, 3, 4, 8, 32]),
    st.booleans(),
    st.integers(1, 400),
    st.sampled_from([0.01, LIVE_PAGE_S, 3.0, 8.0]),
)
@settings(max_examples=50, deadline=None)
def test_codes_survive_any_length_pieces_and_pages(
    samples: int, books: int, raw: bool, step: int, page_s: float
) -> None:
    stream = mono_stream(samples, books, raw=raw, seed=samples, step=step, page_s=page_s)
    reader, items = read(stream.data, stream.coder)
    assert np.array_equal(codes_of(items, books), stream.codes)
    assert (items[-1].end if items else 0) == samples
    assert all(one.end == other.start for one, other in itertools.pairwise(items))
    assert reader.ended
    assert not reader.next_link()
    assert reader.comments.get("model") == "m"


@pytest.mark.parametrize("samples", [0, 1, 47_520, 47_521, 47_900, 48_000, 96_000, 500_001])
@pytest.mark.parametrize("page_s", [0.1, 8.0])
def test_segments_survive_with_their_scales(samples: int, page_s: float) -> None:
    stream = stereo_stream(samples, page_s=page_s)
    reader, items = read(stream.data, stream.coder)
    assert np.array_equal(codes_of(items, 4), stream.codes)
    assert tuple(item.scale for item in all_of(CodeBlock, items)) == stream.scales
    assert [item.start for item in items] == [47_520 * i for i in range(len(items))]
    assert (items[-1].end if items else 0) == samples
    assert reader.header.scaled


def test_fewer_layers_in_some_packets_are_read_as_they_were_written() -> None:
    table = tables()
    coder, file = TableCoder(table), io.BytesIO()
    writer = ContainerWriter(file, HEADER, coder)
    parts = [draw(table, frames, books) for frames, books in [(10, 8), (200, 2), (75, 4), (1, 8)]]
    for part in parts:
        writer.write(part)
    with pytest.raises(InputError, match="layers of"):
        writer.write(draw(table, 90, 3))
    writer.finish(286 * 320)
    _, items = read(file.getvalue(), coder)
    assert [item.codes.shape for item in all_of(CodeBlock, items)] == [
        (10, 8),
        (75, 2),
        (75, 2),
        (50, 2),
        (75, 4),
        (1, 8),
    ]
    assert items[-1].end == 286 * 320


@pytest.mark.skipif(shutil.which("oggz") is None, reason="oggz-tools is not installed")
@pytest.mark.parametrize("samples", [0, 1, 320, 24_000, 24_001, 400_000])
@pytest.mark.parametrize("page_s", [LIVE_PAGE_S, 8.0])
def test_independent_tools_accept_what_is_written(
    samples: int, page_s: float, tmp_path: Path
) -> None:
    path = tmp_path / "a.encodec"
    for stream in (mono_stream(samples, 8, page_s=page_s), stereo_stream(samples, page_s=page_s)):
        path.write_bytes(stream.data)
        assert_accepted(path)


def assert_accepted(path: Path) -> None:
    for command in (["oggz", "validate"], ["ogginfo"]):
        run = subprocess.run([*command, path], capture_output=True, text=True)
        said = run.stdout + run.stderr
        assert run.returncode == 0, said
        assert "arning" not in said, said


def test_the_identification_header_survives_and_is_checked() -> None:
    for header in (HEADER, replace(HEADER, start="zero", pre_skip=2**32 - 1, coding=Coding.TABLES)):
        assert StreamHeader.parse(header.to_bytes()) == header
        assert StreamHeader.parse(header.to_bytes() + b"later versions") == header
    data = bytearray(HEADER.to_bytes())
    data[8] = 0x10
    with pytest.raises(PacketError, match="version 16"):
        StreamHeader.parse(bytes(data))
    with pytest.raises(PacketError, match="ends early"):
        StreamHeader.parse(HEADER.to_bytes()[:50])


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 3}, {"hop": 0}, {"sampling_rate": 0}, {"codebook_size": 1000}, {"layers": ()},
        {"layers": (2, 0)}, {"segment": 100}, {"segment": 100, "stride": 101}, {"scaled": True},
        {"hop": 1, "sampling_rate": 2**31}, {"pre_skip": 2**32}, {"layers": (65535, 2)},
    ],
)  # fmt: skip
def test_streams_that_cannot_be_are_refused(
    change: dict[str, bool] | dict[str, int] | dict[str, tuple[()]] | dict[str, tuple[int, int]],
) -> None:
    with pytest.raises(PacketError):
        replace(HEADER, **change)


@given(st.binary(max_size=160), st.integers(0, 120))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_headers_and_packets_or_a_packet_error(data: bytes, place: int) -> None:
    for head in (b"", HEADER.to_bytes()[:place], Comments("v", (("A", "b"),)).to_bytes()[:place]):
        for parse in (
            StreamHeader.parse, Comments.parse,
            lambda given: DataPacket.parse(given, HEADER),
            lambda given: DataPacket.parse(given, HEADER, salvage=True),
        ):  # fmt: skip
            try:
                found = parse(head + data)
            except PacketError:
                continue
            assert parse(found.to_bytes()) == found


def test_comments_are_those_of_vorbis() -> None:
    comments = Comments("me", (("TITLE", "Grüße"), ("empty", "")))
    assert Comments.parse(comments.to_bytes()) == comments
    assert comments.to_bytes()[8:].startswith(b"\2\0\0\0me\2\0\0\0\x0d\0\0\0TITLE=Gr")
    with pytest.raises(InputError, match="comment"):
        Comments("me", (("A=B", "c"),)).to_bytes()


def test_a_layer_is_bound_to_its_packet_and_place() -> None:
    layers = (Payload(True, bytes(range(23))), Payload(False, b"defg"))
    packet = DataPacket(9, layers, restart=True)
    data = packet.to_bytes()
    assert DataPacket.parse(data, HEADER) == packet
    # Of equal layers too, one cannot take the other's place.
    twice = DataPacket(9, (layers[1], layers[1])).to_bytes()
    with pytest.raises(PacketError, match="wrong checksum"):
        DataPacket.parse(twice[:3] + twice[9:11] + twice[5:], HEADER)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(PacketError):
                DataPacket.parse(bytes(damaged), HEADER)


def test_a_layer_longer_than_its_codes_is_refused() -> None:
    packet = DataPacket(9, (Payload(False, bytes(24)),))
    with pytest.raises(PacketError, match="24 bytes, although its codes take 23"):
        DataPacket.parse(packet.to_bytes(), HEADER)


def test_a_damaged_upper_layer_leaves_the_lower_ones() -> None:
    stream = mono_stream(48_000, 8)
    pages = pages_of(stream.data)
    body = bytearray(pages[-1].body)
    (packet, _), *_ = pages[-1].pieces()
    body[len(packet) - 1] ^= 1
    data = stream.data.replace(pages[-1].body, bytes(body))
    with pytest.raises(PacketError, match="checksum"):
        read(data, stream.coder)
    reader, items = read(data, stream.coder, salvage=True)
    first, second, *_ = all_of(CodeBlock, items)
    assert first.codes.shape == (75, 4)
    assert np.array_equal(first.codes, stream.codes[:75, :4])
    assert np.array_equal(second.codes, stream.codes[75:])
    assert any("layers damaged" in text for text in reader.problems)


def test_a_flipped_bit_costs_no_more_than_its_packet() -> None:
    stream = mono_stream(200_000, 8, page_s=2.0)
    begin = len(joined(pages_of(stream.data)[:2]))
    chance = random.Random(1)
    for _ in range(300):
        data = bytearray(stream.data)
        place = chance.randrange(begin, len(data))
        data[place] ^= 1 << chance.randrange(8)
        with pytest.raises(PacketError):
            read(bytes(data), stream.coder)
        reader, items = read(bytes(data), stream.coder, salvage=True)
        assert reader.problems
        lost = sum(item.end - item.start for item in items if isinstance(item, Gap))
        # A page whose header is hit is lost as a whole, two seconds.
        assert lost <= 48_000
        assert items[-1].end in (200_000, *range(0, 200_000, 24_000))
        for item in items:
            if isinstance(item, CodeBlock):
                first, (frames, books) = item.start // 320, item.codes.shape
                assert np.array_equal(item.codes, stream.codes[first : first + frames, :books])


def test_a_killed_writer_leaves_a_stream_to_its_last_page() -> None:
    stream = mono_stream(240_000, 4, page_s=LIVE_PAGE_S)
    pages = pages_of(stream.data)
    for kept in range(2, len(pages)):
        reader, items = read(joined(pages[:kept]), stream.coder)
        assert not reader.ended
        assert np.array_equal(codes_of(items, 4), stream.codes[: 75 * (kept - 2)])


def test_of_a_stream_cut_off_anywhere_all_whole_packets_are_salvaged() -> None:
    stream = mono_stream(240_000, 4)
    last = pages_of(stream.data)[-2]
    begin = last.offset + 27 + len(last.segments)
    ends = begin + np.cumsum([len(data) for data, _ in last.pieces()])
    for length in [*ends[:-1], *(ends - 1), *(ends[:-1] + 1)]:
        with pytest.raises(PacketError, match="within a"):
            read(stream.data[:length], stream.coder)
        reader, items = read(stream.data[:length], stream.coder, salvage=True)
        whole = 75 * int(sum(ends <= length))
        assert np.array_equal(codes_of(items, 4), stream.codes[:whole])
        assert any("the file ends within a page" in text for text in reader.problems)
        assert not reader.ended


def test_a_recording_has_all_but_the_last_second_on_file() -> None:
    table, file = tables(), io.BytesIO()
    coder = TableCoder(table)
    writer = ContainerWriter(file, HEADER, coder, page_s=LIVE_PAGE_S)
    codes = draw(table, 1000, 8)
    for frame in range(1000):
        writer.write(codes[frame : frame + 1])
        _, items = read(file.getvalue(), coder)
        assert len(codes_of(items, 8)) >= frame - 75


def test_a_lost_page_is_refused_or_a_gap_of_its_length() -> None:
    stream = mono_stream(240_000, 4, page_s=LIVE_PAGE_S)
    pages = pages_of(stream.data)
    data = joined([*pages[:4], *pages[6:]])
    with pytest.raises(PacketError, match="page 6 follows where page 4 was due"):
        read(data, stream.coder)
    _, items = read(data, stream.coder, salvage=True)
    (gap,) = [item for item in items if isinstance(item, Gap)]
    assert (gap.start, gap.end) == (48_000, 96_000)
    assert items[-1].end == 240_000


@pytest.mark.parametrize("granule", [-5, -(2**63), 2**63 - 1, 2**62 + 1, 100, 10**12])
def test_impossible_positions_are_refused_or_reported(granule: int) -> None:
    stream = mono_stream(240_000, 4, page_s=LIVE_PAGE_S)
    pages = pages_of(stream.data)
    pages[5] = replace(pages[5], granule=granule)
    with pytest.raises(PacketError, match="granule position"):
        read(joined(pages), stream.coder)
    reader, items = read(joined(pages), stream.coder, salvage=True)
    assert any("granule position" in text for text in reader.problems)
    blocks = [item for item in items if isinstance(item, CodeBlock)]
    assert np.array_equal(np.concatenate([block.codes for block in blocks]), stream.codes)


def test_foreign_streams_beside_are_skipped() -> None:
    stream = mono_stream(100_000, 4, page_s=LIVE_PAGE_S)
    own, mixed = pages_of(stream.data), []
    for index, page in enumerate(own):
        other = replace(page, serial=99, body=b"theora" + bytes(len(page.body) - 6))
        mixed += [other, page] if index == 0 else [page, other]
    reader, items = read(joined(mixed), stream.coder)
    assert np.array_equal(codes_of(items, 4), stream.codes)
    assert reader.foreign_pages == len(own)


def test_links_of_a_chain_are_read_one_after_the_other() -> None:
    one, other = mono_stream(30_000, 4), mono_stream(50_000, 8, seed=3)
    # Joined by a shell, two streams may even have the same serial number.
    reader = PacketReader(io.BytesIO(one.data + other.data + one.data))
    for number, wanted in enumerate((one, other, one)):
        items = list(read_codes(reader, reader.header, wanted.coder, salvage=False))
        assert np.array_equal(codes_of(items, wanted.codes.shape[1]), wanted.codes)
        assert reader.next_link() == (number < 2)


def test_a_stream_that_began_elsewhere_keeps_its_positions() -> None:
    stream = mono_stream(240_000, 4, page_s=LIVE_PAGE_S)
    pages = pages_of(stream.data)
    moved = [*pages[:2], *(replace(page, granule=page.granule + 10**9) for page in pages[2:])]
    _, items = read(joined(moved), stream.coder)
    assert items[0].start == 10**9
    assert items[-1].end == 10**9 + 240_000


def test_pages_after_the_end_and_a_missing_end_within_a_packet_are_named() -> None:
    stream = mono_stream(240_000, 4, page_s=LIVE_PAGE_S)
    pages = pages_of(stream.data)
    with pytest.raises(PacketError, match="after the end"):
        read(joined([*pages, replace(pages[-1], sequence=99)]), stream.coder)
    cut = stream.data[:-1]
    with pytest.raises(PacketError, match="ends within a page"):
        read(cut, stream.coder)
    _, items = read(cut, stream.coder, salvage=True)
    assert items[-1].end >= 216_000


def test_what_is_no_stream_is_named() -> None:
    for data, words in [
        (b"", "no EnCodec stream"), (b"RIFF" + bytes(99), "not an Ogg page, at the start"),
        (Page(1, 0, 0, b"\x07", b"\x01vorbis", first=True).to_bytes(), "no EnCodec stream"),
        (joined(pages_of(mono_stream(9).data)[:1]), "within its headers"),
    ]:  # fmt: skip
        with pytest.raises(PacketError, match=words):
            PacketReader(io.BytesIO(data))


@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_mutated_files_give_codes_gaps_or_typed_errors(part: int) -> None:
    chance = random.Random(part)
    stream = [
        lambda: mono_stream(100_000, 8, page_s=LIVE_PAGE_S),
        lambda: mono_stream(3_000, 4),
        lambda: mono_stream(60_000, 2, raw=True),
        lambda: stereo_stream(150_000, page_s=LIVE_PAGE_S),
    ][part]()
    salvaged = 0
    for number in range(2_500):
        data = mutated(stream.data, chance)
        # Tracing makes everything several times slower.
        watched = number % 25 == 0
        if watched:
            tracemalloc.start()
        for salvage in (False, True):
            try:
                _, items = read(data, stream.coder, salvage=salvage)
            except CodecError:
                continue
            salvaged += salvage
            assert all(isinstance(item, CodeBlock) or item.reason for item in items)
            assert all(item.start <= item.end for item in items)
        if watched:
            assert tracemalloc.get_traced_memory()[1] < 30e6
            tracemalloc.stop()
    assert salvaged > 500


def mutated(data: bytes, chance: Random) -> bytes:
    """``data`` with a few bytes changed, and its checksums made right again now and then."""
    given = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        place = chance.randrange(len(given))
        match chance.randrange(5):
            case 0:
                given[place] ^= 1 << chance.randrange(8)
            case 1:
                given[place] = chance.randrange(256)
            case 2:
                del given[place : place + chance.randrange(1, 40)]
            case 3:
                given[place:place] = given[: chance.randrange(1, 60)]
            case 4:
                given[place : place + 8] = struct.pack(
                    "<Q", chance.choice([0, 2**63 - 1, 2**64 - 1])
                )
    if chance.random() < 0.5:
        pages = PageReader(io.BytesIO(bytes(given)), salvage=True)
        return joined(page for page in pages if isinstance(page, Page))
    return bytes(given)


def test_a_packet_that_claims_much_costs_little() -> None:
    header = replace(HEADER, sampling_rate=320 * 4096, layers=(256,))
    coder = TableCoder(tables(books=256))
    data = DataPacket(4096, (Payload(False, b"\0"),)).to_bytes()
    packet = DataPacket.parse(data, header)
    assert coder.decode(packet.layers, header.layers, 4096, restart=True).shape == (4096, 256)
    with pytest.raises(PacketError, match="4097 frames"):
        DataPacket.parse(DataPacket(4097, packet.layers).to_bytes(), header)


def test_a_writer_refuses_what_the_stream_cannot_hold() -> None:
    writer = ContainerWriter(io.BytesIO(), HEADER, RawCoder(1024))
    with pytest.raises(InputError, match="scale"):
        writer.write(np.zeros((1, 8), np.uint16), 0.5)
    writer.write(np.zeros((2, 8), np.uint16))
    for samples in (320, 641, 0):
        with pytest.raises(StateError, match=f"for {samples} samples"):
            writer.finish(samples)
    writer = ContainerWriter(
        io.BytesIO(), StreamHeader.for_model(STEREO, 4, start="exact", codes_sha256=WEIGHTS),
        RawCoder(1024),
    )  # fmt: skip
    with pytest.raises(InputError, match="one scale per segment"):
        writer.write(np.zeros((1, 4), np.uint16))
    with pytest.raises(ConfigError, match="33 codebooks"):
        StreamHeader.for_model(MONO, 33, start="exact", codes_sha256=WEIGHTS)


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_is_what_is_written_and_read() -> None:
    lines = present(re.search(r"(?:^    (?:[0-9a-f]{2} ?)+\n){8}", PAGE, re.MULTILINE))
    shown = bytes.fromhex(lines.group())
    codes = np.array([[1, 2, 5, 0], [3, 4, 1023, 512], [1022, 1023, 7, 8]], np.uint16)
    header = StreamHeader.for_model(MONO, 4, start="exact", codes_sha256=WEIGHTS)
    file = io.BytesIO()
    comments = Comments("me", (("TITLE", "x"),))
    writer = PacketWriter(file, header, comments, serial=0x01020304)
    coder = RawCoder(1024)
    payloads = coder.encode(codes, header.layers, restart=True)
    writer.write(DataPacket(3, tuple(payloads)))
    writer.finish(700)
    assert file.getvalue() == shown
    reader, items = read(shown, coder)
    (block,) = all_of(CodeBlock, items)
    assert (reader.header, reader.comments, block.end) == (header, comments, 700)
    assert np.array_equal(block.codes, codes)


def test_range_coded_example_of_the_page() -> None:
    shown = bytes.fromhex(present(re.search(r"are the bytes\n\n    (.*)\n", PAGE)).group(1))
    distribution = Distribution(np.array([40_000, 20_000, 5_536]))
    symbols = [2, 0, 1, 0, 0, 0, 0, 0, 2]
    encoder = SymbolEncoder()
    encoder.encode(np.array(symbols), distribution)
    assert encoder.finish() == shown
    assert SymbolDecoder(shown).decode(distribution, 9).tolist() == symbols


def test_layers_are_the_bandwidths_of_the_model() -> None:
    assert HEADER.layers == (2, 2, 4)
    odd = StreamHeader.for_model(MONO, 7, start="exact", codes_sha256=WEIGHTS)
    assert odd.layers == (2, 2, 3)
    tiny = StreamHeader.for_model(tiny_config(), 4, start="zero", codes_sha256=WEIGHTS)
    assert tiny.layers == (1, 1, 2)
    assert tiny.max_frames == 100


def test_code_tables_survive_their_file_and_are_found_by_their_hash(tmp_path: Path) -> None:
    table = tables(codebook_size=64, books=3)
    path = tmp_path / "code_tables-1.safetensors"
    table.save(path)
    again = CodeTables.load(path)
    assert again.sha256 == table.sha256
    assert again.codes_sha256 == WEIGHTS
    assert tables_by_hash(table.sha256, tmp_path).sha256 == table.sha256
    with pytest.raises(WeightsError, match="needs the code tables 0000"):
        tables_by_hash(bytes(32), tmp_path)
    with pytest.raises(WeightsError, match="language model 0000"):
        coder_for(Coding.LANGUAGE_MODEL, bytes(32), 64)
    path.write_bytes(b"not a table")
    with pytest.raises(WeightsError, match="does not hold code tables"):
        CodeTables.load(path)
    with pytest.raises(WeightsError, match="add up to"):
        CodeTables(np.ones((2, 4), np.uint16), WEIGHTS)


def test_numbers_in_packets_are_written_in_one_way_only() -> None:
    assert [varint(value).hex() for value in (0, 127, 128, 300)] == ["00", "7f", "8001", "ac02"]
    head = b"\x01" + b"\x81\x00"
    with pytest.raises(PacketError, match="damaged number"):
        DataPacket.parse(head + bytes(9), HEADER)
