from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies._internal.core import DataObject

from encodec_rt.bitstream.packet import (
    MAX_BACK,
    Packet,
    Redundancy,
    encode_packet,
    group_size,
    pack_codes,
    packed_size,
    parse_packet,
    unpack_codes,
)
from encodec_rt.errors import InputError, PacketError
from encodec_rt.types import Codes
from tests.support.narrow import present
from tests.support.upstream import encodec

ROOT = Path(__file__).resolve().parents[2]


@st.composite
def codes(draw: st.DrawFn, most_frames: int = 4, most_books: int = 32, bits: int = 10) -> Codes:
    frames = draw(st.integers(1, most_frames))
    books = draw(st.integers(1, most_books))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 1 << bits, (frames, books), dtype=np.uint16)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    own = draw(codes())
    if not draw(st.booleans()):
        return Packet(own)
    copies = draw(codes(most_books=4))
    return Packet(own, Redundancy(draw(st.integers(len(copies), MAX_BACK)), copies))


def same(one: Packet, other: Packet) -> bool:
    first, second = one.redundancy, other.redundancy
    if first is None or second is None:
        return first is second and np.array_equal(one.codes, other.codes)
    return (
        np.array_equal(one.codes, other.codes)
        and first.back == second.back
        and np.array_equal(first.codes, second.codes)
    )


def pack_one_bit_at_a_time(values: list[int], bits: int) -> bytes:
    stream = [value >> bit & 1 for value in values for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(
        sum(bit << place for place, bit in enumerate(stream[start : start + 8]))
        for start in range(0, len(stream), 8)
    )


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_is_least_significant_bit_first_at_every_width(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (13, 3), dtype=np.uint16)
    data = pack_codes(values, bits)
    assert data == pack_one_bit_at_a_time(values.reshape(-1).tolist(), bits)
    assert len(data) == packed_size(values.size, bits)
    assert np.array_equal(unpack_codes(data, bits, values.shape), values)


def test_packing_agrees_with_upstreams_bit_packer() -> None:
    values = np.random.default_rng(0).integers(0, 1024, (50, 7), dtype=np.uint16)
    file = io.BytesIO()
    packer = encodec.binary.BitPacker(10, file)
    for value in values.reshape(-1).tolist():
        packer.push(value)
    packer.flush()
    assert pack_codes(values, 10) == file.getvalue()


@pytest.mark.parametrize(("bits", "codes_per_group"), [(10, 4), (8, 1), (11, 8), (12, 2), (16, 1)])
def test_a_group_of_codes_fills_whole_bytes(bits: int, codes_per_group: int) -> None:
    assert group_size(bits) == codes_per_group
    assert codes_per_group * bits % 8 == 0


def test_no_codes_are_no_bytes() -> None:
    assert pack_codes(np.empty((0, 8), np.uint16), 10) == b""
    assert unpack_codes(b"", 10, (0, 8)).shape == (0, 8)


@pytest.mark.parametrize("value", [-1, 1024])
def test_codes_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(InputError, match="10 bits hold 0 to 1023"):
        pack_codes(np.array([[value]]), 10)


def test_fractions_are_refused() -> None:
    with pytest.raises(InputError, match="float64"):
        pack_codes(np.array([[0.5]]), 10)


@given(packets())
@settings(max_examples=200, deadline=None)
def test_a_packet_survives_its_payload(packet: Packet) -> None:
    payload = encode_packet(packet, bits=10)
    assert same(parse_packet(payload, bits=10), packet)


@given(st.binary(max_size=200), st.integers(1, 32), st.sampled_from([1, 7, 8, 10, 16]))
@settings(max_examples=1500, deadline=None)
def test_any_bytes_are_a_packet_with_that_payload_or_a_packet_error(
    data: bytes, books: int, bits: int
) -> None:
    try:
        packet = parse_packet(data, bits=bits, max_codebooks=books)
    except PacketError:
        return
    assert packet.codes.shape[1] <= books
    assert encode_packet(packet, bits=bits) == data


@given(packets(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_shortened_or_lengthened_payload_is_refused(packet: Packet, data: DataObject) -> None:
    payload = encode_packet(packet, bits=10)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for wrong in (payload[:cut], payload + b"\0"):
        with pytest.raises(PacketError):
            parse_packet(wrong, bits=10)


def test_filling_bits_must_be_zero() -> None:
    payload = bytearray(encode_packet(Packet(np.zeros((1, 1), np.uint16)), bits=10))
    payload[-1] |= 0x80
    with pytest.raises(PacketError, match="not zero"):
        parse_packet(bytes(payload), bits=10)


def test_more_codebooks_than_agreed_are_refused() -> None:
    payload = encode_packet(Packet(np.zeros((1, 8), np.uint16)), bits=10)
    assert parse_packet(payload, bits=10, max_codebooks=8).codes.shape == (1, 8)
    with pytest.raises(PacketError, match="8 codebooks"):
        parse_packet(payload, bits=10, max_codebooks=7)


@pytest.mark.parametrize("shape", [(0, 8), (5, 8), (1, 0), (1, 33), (8,)])
def test_shapes_that_a_payload_cannot_name_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        encode_packet(Packet(np.zeros(shape, np.uint16)), bits=10)


@pytest.mark.parametrize("back", [0, 1, 17])
def test_redundancy_must_lie_before_the_packet_and_within_reach(back: int) -> None:
    extra = Redundancy(back, np.zeros((2, 2), np.uint16))
    with pytest.raises(InputError, match="frames back"):
        encode_packet(Packet(np.zeros((1, 8), np.uint16), extra), bits=10)


def test_the_documented_example_parses_to_what_the_document_says() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    payload = bytes.fromhex(
        present(re.search(r"^    ([0-9a-f ]{10,})$", text, re.MULTILINE)).group(1)
    )
    packet = parse_packet(payload, bits=10)
    shown = [
        [int(code) for code in row.split(",")]
        for row in re.findall(r"^\| (?:frame|copy) [^|]*\| ([0-9, ]+) \|$", text, re.MULTILINE)
    ]
    assert packet.redundancy is not None
    assert packet.codes.tolist() == shown[: len(packet.codes)]
    assert packet.redundancy.codes.tolist() == shown[len(packet.codes) :]
    assert f"back = {packet.redundancy.back}" in text
    assert encode_packet(packet, bits=10) == payload
