"""Which datagrams may pass to ICE, DTLS and SRTP: anyone can send one to the port of a call.

Pure, and cheap where it refuses: cryptography is only for those who may be the other side.
"""

from __future__ import annotations

from collections.abc import Container

MAX_DATAGRAM_BYTES = 1500
"""Longer ones are not ours, and beyond 2046 bytes they would end aiortc's receive loop."""

_RTP_HEADER = 12
_STUN_HEADER, _STUN_COOKIE = 20, b"\x21\x12\xa4\x42"
_BINDING_REQUEST = b"\x00\x01"

_DTLS_VERSIONS = (b"\xfe\xff", b"\xfe\xfd")
_DTLS_HEADER, _FRAGMENT_HEADER = 13, 12
_CHANGE_CIPHER_SPEC, _HANDSHAKE = 20, 22
_MAX_MESSAGE_BYTES = 1 << 14
_CERTIFICATE, _SERVER_HELLO_DONE, _KEY_EXCHANGE = 11, 14, 16
_EXPECTED: dict[str, frozenset[int]] = {
    "server": frozenset({1, _CERTIFICATE, 15, _KEY_EXCHANGE}),
    "client": frozenset({2, _CERTIFICATE, 12, 13, _SERVER_HELLO_DONE}),
}
"""Messages that come unencrypted to either role (RFC 5246, 7.4); there is no session to resume and
no ticket, and the address was checked by ICE, so that no cookie is asked for."""


def admits(
    datagram: bytes, *, known: bool, name: bytes, transactions: Container[bytes], role: str
) -> bool:
    """Whether ``datagram`` may come from the other side.

    ``known``: it comes from an address that was signalled or has passed a check of ICE.
    ``name``: how the user name in the checks to this side begins; ``transactions``: the checks of
    this side that wait for an answer; ``role``: this side's in DTLS, "client" or "server".
    The first byte says what it is (RFC 7983).
    """
    if not 0 < len(datagram) <= MAX_DATAGRAM_BYTES:
        return False
    first = datagram[0]
    if first < 4:
        return _is_check(datagram, name, transactions)
    if not known:
        return False
    if first < 64:
        return _is_dtls(datagram, role)
    return 128 <= first < 192 and len(datagram) >= _RTP_HEADER


def _is_check(datagram: bytes, name: bytes, transactions: Container[bytes]) -> bool:
    """Whether it is a check of this call, or the answer to one (RFC 8445).

    Others would get an error response (RFC 8489, 9.1.3), which is work that anyone could cause.
    """
    if len(datagram) < _STUN_HEADER or datagram[4:8] != _STUN_COOKIE:
        return False
    if datagram[:2] == _BINDING_REQUEST:
        return name in datagram
    return datagram[8:_STUN_HEADER] in transactions


def _is_dtls(datagram: bytes, role: str) -> bool:
    """Whether all of it is DTLS 1.2 records that belong in this call (RFC 6347, 4.1).

    Anyone may have written what is not encrypted yet. An alert in it would end the handshake, and
    so would an out-of-place message.
    """
    at = 0
    while at < len(datagram):
        header = datagram[at : at + _DTLS_HEADER]
        start = at + _DTLS_HEADER
        at = start + int.from_bytes(header[11:], "big")
        if len(header) < _DTLS_HEADER or header[1:3] not in _DTLS_VERSIONS or at > len(datagram):
            return False
        epoch = header[3:5]
        if not 20 <= header[0] <= 23:
            return False
        if epoch == b"\0\0" and not _is_plain(header[0], datagram[start:at], role):
            return False
    return True


def _is_plain(kind: int, body: bytes, role: str) -> bool:
    if kind == _CHANGE_CIPHER_SPEC:
        return body == b"\x01"
    if kind != _HANDSHAKE or len(body) < _FRAGMENT_HEADER:
        return False
    length, offset, fragment = (int.from_bytes(body[at : at + 3], "big") for at in (1, 6, 9))
    return (
        body[0] in _EXPECTED.get(role, ())
        and fragment == len(body) - _FRAGMENT_HEADER
        and offset + fragment <= length <= _MAX_MESSAGE_BYTES
    )
