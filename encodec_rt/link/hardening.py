"""aiortc and aioice hardened: they assume friendly peers, but take datagrams from anyone.

The attributes replaced here are private, so each call checks that they exist, and both versions are
pinned, since a new release may rename them.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from encodec_rt.errors import LinkError
from encodec_rt.link.datagrams import admits
from encodec_rt.link.sdp import PARSER_ERRORS

logger = logging.getLogger(__name__)

WAITING_DATAGRAMS = 256
"""Datagrams that may wait to be decrypted, more than a second's; further ones are dropped."""
MAX_SOURCES = 8
"""The most SSRCs in one call: aiortc forgets none, and the other side needs one."""
MAX_STREAMS = 16
"""The most SCTP streams in one call, for the same reason."""
MAX_WAITING_CHUNKS = 64
"""The most chunks of a stream that may wait for others: our messages are single chunks."""
MAX_MISSING = 1024
"""The most chunks received after a missing one; aiortc sorts them whenever another arrives."""

UNREADABLE = (struct.error, *PARSER_ERRORS)

_RTP, _RTCP = "_handle_rtp_data", "_handle_rtcp_data"
_ROLE = "_role"
_ICE = "_connection"
_SOCKETS = "_protocols"
_CANDIDATES = "_remote_candidates"
_WAITING = "_queue"
_SCTP, _CHUNK = "_handle_data", "_receive_data_chunk"
_STREAMS, _MISSING = "_inbound_streams", "_sack_misordered"


def require(owner: object, *names: str) -> None:
    """Raise LinkError unless ``owner`` still has these attributes."""
    for name in names:
        if not hasattr(owner, name):
            raise LinkError(
                f"there is no {type(owner).__name__}.{name}; install aiortc>=1.16,<1.17 "
                "and aioice>=0.13,<0.14"
            )


def harden_sctp(sctp: Any) -> None:
    """As ``harden_dtls``, for a data channel's transport, with bounds on what it remembers.

    To be called before the description that starts it. Raises LinkError if a library changed.
    """
    require(sctp, _SCTP, _CHUNK, _STREAMS, _MISSING)
    harden_dtls(sctp.transport)
    setattr(sctp, _SCTP, _forgiving(getattr(sctp, _SCTP), None))
    receive = getattr(sctp, _CHUNK)

    async def received(chunk: Any) -> None:
        streams = getattr(sctp, _STREAMS)
        stream = streams.get(chunk.stream_id)
        known = len(streams) < MAX_STREAMS if stream is None else True
        waiting = 0 if stream is None else len(stream.reassembly)
        if known and waiting < MAX_WAITING_CHUNKS and len(getattr(sctp, _MISSING)) < MAX_MISSING:
            await receive(chunk)

    setattr(sctp, _CHUNK, received)


def harden_dtls(dtls: Any) -> None:
    """Let ``dtls`` take only what ``datagrams.admits``, and survive whatever the peer sends.

    Raises LinkError if a library changed.
    """
    require(dtls, _RTP, _RTCP, _ROLE)
    require(dtls.transport, _ICE)
    require(getattr(dtls.transport, _ICE), _SOCKETS, _CANDIDATES, _WAITING, "gather_candidates")
    for name, most in ((_RTP, MAX_SOURCES), (_RTCP, None)):
        setattr(dtls, name, _forgiving(getattr(dtls, name), most))
    ice = getattr(dtls.transport, _ICE)
    gather = ice.gather_candidates

    async def gathered() -> None:
        await gather()
        for each in getattr(ice, _SOCKETS):
            each.datagram_received = _Filter(each, ice, dtls)

    ice.gather_candidates = gathered


def _forgiving(
    handle: Callable[..., Awaitable[None]], most_sources: int | None
) -> Callable[..., Awaitable[None]]:
    """``handle`` for decrypted packets; an unreadable one does not end the call."""
    sources: set[bytes] = set()

    async def forgiving(data: bytes, **rest: object) -> None:
        if most_sources is not None:
            source = data[8:12]
            if source not in sources and len(sources) >= most_sources:
                return
            sources.add(source)
        try:
            await handle(data, **rest)
        except UNREADABLE as error:
            logger.debug("a packet that cannot be read: %r", error)

    return forgiving


class _Filter:
    """In place of a socket's ``datagram_received``."""

    def __init__(self, endpoint: Any, ice: Any, dtls: Any) -> None:
        self._receive, self._transactions = endpoint.datagram_received, endpoint.transactions
        self._ice, self._dtls = ice, dtls
        self._name = f"{ice.local_username}:".encode()
        self._candidates = 0
        self._addresses: set[tuple[str, int]] = set()

    def __call__(self, datagram: bytes, address: tuple[Any, ...]) -> None:
        candidates = getattr(self._ice, _CANDIDATES)
        if len(candidates) != self._candidates:
            # aioice adds to them only.
            self._candidates = len(candidates)
            self._addresses = {(each._network_host, each.port) for each in candidates}
        admitted = admits(
            datagram,
            known=address[:2] in self._addresses,
            name=self._name,
            transactions=self._transactions,
            role=getattr(self._dtls, _ROLE),
        )
        if admitted and getattr(self._ice, _WAITING).qsize() < WAITING_DATAGRAMS:
            try:
                self._receive(datagram, address)
            except UNREADABLE as error:
                logger.debug("a check that cannot be read: %r", error)
