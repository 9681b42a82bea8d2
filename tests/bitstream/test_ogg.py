from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream.ogg import Junk, Page, PageReader, PageWriter, checksum
from encodec_rt.errors import InputError, PacketError
from tests.support.narrow import all_of
from tests.support.streams import Trickle


def checksum_bit_by_bit(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 * (crc >> 31)) & 0xFFFFFFFF
    return crc


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_checksum_is_that_of_rfc_3533(data: bytes) -> None:
    assert checksum(data) == checksum_bit_by_bit(data)


def laid_out(packets: list[bytes], serial: int = 7) -> bytes:
    file = io.BytesIO()
    writer = PageWriter(file, serial)
    for index, packet in enumerate(packets):
        writer.add(packet, 100 * index)
        if index % 3 == 2:
            writer.flush()
    writer.add(b"end", 100 * len(packets))
    writer.flush(last=True)
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


def collected(pages: list[Page]) -> list[bytes]:
    packets, held = [], b""
    for page in pages:
        assert page.continued == bool(held)
        for data, complete in page.pieces():
            held += data
            if complete:
                packets.append(held)
                held = b""
    return packets


@given(st.lists(st.sampled_from([0, 1, 254, 255, 256, 509, 510, 65024, 65025, 65026, 200_000])))
@settings(max_examples=40, deadline=None)
def test_packets_of_any_length_survive_their_pages(lengths: list[int]) -> None:
    packets = [random.Random(size).randbytes(size) for size in lengths]
    data = laid_out(packets)
    pages = all_of(Page, PageReader((Trickle if len(data) < 5000 else io.BytesIO)(data)))
    assert collected(pages) == [*packets, b"end"]
    assert [page.sequence for page in pages] == list(range(len(pages)))
    assert [page.first for page in pages] == [True] + [False] * (len(pages) - 1)
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert b"".join(page.to_bytes() for page in pages) == data
    for page in pages:
        ends = any(complete for _, complete in page.pieces())
        assert (page.granule >= 0) == ends


@pytest.mark.parametrize(
    "junk", [b"x", b"OggS", b"OggS" * 30, bytes(70_000), b"OggS\0" + bytes(99)]
)
def test_pages_are_found_again_after_bytes_that_are_none(junk: bytes) -> None:
    packets = [b"one", b"two", b"three", b"four"]
    pages = all_of(Page, PageReader(io.BytesIO(laid_out(packets))))
    data = pages[0].to_bytes() + junk + pages[1].to_bytes()
    with pytest.raises(PacketError, match=f"at byte {len(pages[0].to_bytes())}"):
        list(PageReader(io.BytesIO(data)))
    found = list(PageReader(io.BytesIO(data), salvage=True))
    assert [page.sequence for page in found if isinstance(page, Page)] == [0, 1]
    assert sum(event.size for event in found if isinstance(event, Junk)) == len(junk)


def test_a_damaged_page_that_keeps_its_length_is_given_as_damaged() -> None:
    data = bytearray(laid_out([b"one", b"two", b"three", b"four"]))
    data[data.index(b"two")] ^= 1
    with pytest.raises(PacketError, match="wrong checksum"):
        list(PageReader(io.BytesIO(data)))
    pages = all_of(Page, PageReader(io.BytesIO(data), salvage=True))
    assert [page.intact for page in pages] == [False, True]


@pytest.mark.parametrize("length", [1, 26, 27, 28, 31])
def test_a_file_that_ends_within_a_page_is_refused_or_reported(length: int) -> None:
    data = laid_out([b"one", b"two", b"three"])[:length]
    with pytest.raises(PacketError):
        list(PageReader(io.BytesIO(data)))
    (junk,) = PageReader(io.BytesIO(data), salvage=True)
    assert isinstance(junk, Junk)
    assert junk.size == length


def test_of_a_page_that_the_file_ends_in_the_whole_packets_are_salvaged() -> None:
    (first, _) = all_of(Page, PageReader(io.BytesIO(laid_out([b"one", bytes(510), b"three"]))))
    data = first.to_bytes()
    for length in range(1, len(data)):
        with pytest.raises(PacketError):
            list(PageReader(io.BytesIO(data[:length])))
        found = list(PageReader(io.BytesIO(data[:length]), salvage=True))
        pages = [page for page in found if isinstance(page, Page)]
        packets = [piece for page in pages for piece in page.pieces()]
        ends = len(data) - 5 - 510, len(data) - 5
        assert packets == [(b"one", True), (bytes(510), True)][: sum(end <= length for end in ends)]
        assert all(page.cut and not page.intact for page in pages)


def test_positions_beyond_63_bits_are_refused() -> None:
    writer = PageWriter(io.BytesIO(), 1)
    with pytest.raises(InputError, match="2\\^63"):
        writer.add(b"", 2**63)


def test_reading_holds_a_page_or_two_whatever_the_file_is() -> None:
    reader = PageReader(io.BytesIO(b"OggS" * 100_000), salvage=True)
    most = 0
    for _ in reader:
        most = max(most, len(reader._held))
    assert most < 300_000
