from __future__ import annotations

from collections.abc import Container
from itertools import product

import numpy as np
import pytest

from encodec_rt.link.datagrams import MAX_DATAGRAM_BYTES, admits

NAME = b"abcd:"
STUN = b"\x21\x12\xa4\x42" + bytes(range(12))
REQUEST = b"\x00\x01\x00\x0c" + STUN + b"\x00\x06\x00\x08abcd:efg"
ANSWER = b"\x01\x01\x00\x00" + STUN
RTP = b"\x80\x76" + bytes(30)
WAITING = frozenset({ANSWER[8:20]})


def record(kind: int, body: bytes, *, epoch: int = 0) -> bytes:
    return bytes([kind, 0xFE, 0xFD, 0, epoch, *bytes(6)]) + len(body).to_bytes(2, "big") + body


def message(kind: int, body: bytes, *, length: int | None = None, offset: int = 0) -> bytes:
    """A fragment of a handshake message in a record of its own."""
    numbers = (len(body) + offset if length is None else length, offset, len(body))
    whole, start, here = (number.to_bytes(3, "big") for number in numbers)
    return record(22, bytes([kind]) + whole + b"\x00\x00" + start + here + body)


def admitted(
    datagram: bytes,
    *,
    known: bool = True,
    role: str = "server",
    transactions: Container[bytes] = WAITING,
) -> bool:
    return admits(datagram, known=known, name=NAME, transactions=transactions, role=role)


def test_a_stranger_may_only_ask_by_the_name_of_the_call_or_answer_a_check() -> None:
    assert [admitted(each, known=False) for each in (REQUEST, ANSWER)] == [True, True]
    assert not admitted(REQUEST.replace(b"abcd:", b"abce:"), known=False)
    assert not admitted(REQUEST.replace(STUN[:4], b"\x00\x00\x00\x00"), known=False)
    assert not admitted(ANSWER, known=False, transactions=())
    assert not admitted(REQUEST[:19], known=False)
    for datagram in (RTP, message(1, b"hello"), record(21, bytes(24), epoch=1)):
        assert (admitted(datagram), admitted(datagram, known=False)) == (True, False)


def test_only_the_other_roles_messages_come_unencrypted() -> None:
    theirs = {"server": {1, 11, 15, 16}, "client": {2, 11, 12, 13, 14}, "auto": set[int]()}
    for (role, kinds), kind in product(theirs.items(), range(30)):
        assert admitted(message(kind, b"hello"), role=role) == (kind in kinds)


@pytest.mark.parametrize("kind", [20, 21, 22, 23])
def test_what_is_encrypted_is_left_to_cryptography(kind: int) -> None:
    assert admitted(record(kind, bytes(40), epoch=1))


@pytest.mark.parametrize(
    "forged",
    [
        record(21, b"\x02\x28"),
        record(21, b"\x01\x00"),
        record(23, b"data"),
        record(20, b"\x02"),
        record(22, b"\x01"),
        message(1, b"hello", length=3),
        message(1, b"hello", length=1 << 20),
        message(1, b"hello", offset=1 << 15),
        message(1, b"hello")[:-1],
        message(1, b"hello") + record(21, b"\x02\x28"),
        message(1, b"hello") + b"\x16\xfe",
        message(1, b"hello").replace(b"\xfe\xfd", b"\x03\x03"),
        record(24, b"x", epoch=1),
        record(63, b"x", epoch=1),
    ],
)
def test_records_that_would_end_a_handshake_go_no_further(forged: bytes) -> None:
    assert not admitted(forged)


def test_a_flight_of_several_records_passes_as_one() -> None:
    flight = message(11, b"certificate") + message(16, b"key") + record(20, b"\x01")
    assert admitted(flight + record(22, bytes(40), epoch=1))


def test_empty_long_and_unknown_datagrams_go_no_further() -> None:
    assert admitted(RTP.ljust(MAX_DATAGRAM_BYTES, b"\x00"))
    assert not admitted(RTP.ljust(MAX_DATAGRAM_BYTES + 1, b"\x00"))
    assert not admitted(b"")
    assert not admitted(RTP[:11])
    for first in (*range(4, 20), *range(24, 128), *range(192, 256)):
        assert not admitted(bytes([first]) * 40)


def test_any_bytes_are_judged_without_an_error() -> None:
    rng = np.random.default_rng(0)
    heads = (b"", b"\x16\xfe\xfd", REQUEST[:8], record(22, b"")[:11], message(1, b"")[:20])
    for _ in range(5000):
        head = heads[int(rng.integers(len(heads)))]
        datagram = head + rng.bytes(int(rng.integers(0, 60)))
        for known in (True, False):
            assert admitted(datagram, known=known) in (True, False)
