"""The messages of ``encodec-rt.v1`` between a client and the server; docs/server.md has the tables.

It needs neither torch nor a network, so that the client can use it too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from numbers import Real
from typing import Literal, get_args

from encodec_rt.errors import ConfigError, PacketError

SUBPROTOCOL = "encodec-rt.v1"
TICKET, RESUME = "encodec-rt.ticket.", "encodec-rt.resume."
"""Secrets are sent as subprotocols: a browser cannot send headers, and URLs end up in logs."""
STREAM_PATH = "/v1/stream"
TICKET_PATH = "/v1/tickets"
INFO_PATH = "/v1/info"
PLACE_PATH = "/v1/place"
MAX_MESSAGE_BYTES = 64 * 1024
MAX_EVENT_BYTES = 1024
MAX_INDEX = (1 << 32) - 1
MAX_FRAME = MAX_INDEX - (1 << 16)
"""The last frame that a client may send: the frames of a clip's end have numbers too."""
_HEADER = struct.Struct("<BI")

Mode = Literal["encode", "decode", "duplex", "echo"]
"""Audio in and codes out; codes in and audio out; both, independent; or audio in, and both out."""
_STARTS = ("primed", "exact", "zero")


class Kind(IntEnum):
    """What a binary message holds."""

    PCM = 1
    CODES = 2


class CloseCode(IntEnum):
    """Why a WebSocket was closed, beyond RFC 6455's own codes."""

    SLOW = 4001
    SILENT = 4002
    TOO_LONG = 4003
    FLOOD = 4004
    MALFORMED = 4005
    SUPERSEDED = 4006


def pack_message(kind: Kind, index: int, payload: bytes) -> bytes:
    """Kind, the index of the frame in which the payload begins, and the payload."""
    return _HEADER.pack(kind, index) + payload


def parse_message(data: bytes) -> tuple[Kind, int, bytes]:
    """What ``pack_message`` made. Raises PacketError."""
    if len(data) <= _HEADER.size:
        raise PacketError(f"a message of {len(data)} bytes; a header of {_HEADER.size} comes first")
    kind, index = _HEADER.unpack_from(data)
    if kind not in (Kind.PCM, Kind.CODES):
        raise PacketError(f"a message of kind {kind}; 1 is PCM and 2 is codes")
    return Kind(kind), index, data[_HEADER.size :]


def pack_event(name: str, **fields: object) -> str:
    """An event as JSON text."""
    return json.dumps({"type": name, **fields}, separators=(",", ":"))


def parse_event(text: str) -> dict[str, object]:
    """An event by its fields, "type" among them. Raises PacketError."""
    if len(text) > MAX_EVENT_BYTES:
        raise PacketError(f"an event of {len(text)} characters; at most {MAX_EVENT_BYTES}")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise PacketError("a text message that is not JSON") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise PacketError('an event is a JSON object with a "type"')
    return event


@dataclass(frozen=True)
class StreamRequest:
    """What a client asks for; ``frame`` and ``decoded`` are the next codes and audio it wants.

    Both are 0 except for a client that resumes. Raises ConfigError, naming what is accepted.
    """

    mode: Mode = "echo"
    bandwidth_kbps: float = 6.0
    start: Literal["primed", "exact", "zero"] = "primed"
    frame: int = 0
    decoded: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode={_shown(self.mode)}; accepted: {', '.join(get_args(Mode))}")
        if self.start not in _STARTS:
            raise ConfigError(f"start={_shown(self.start)}; accepted: {', '.join(_STARTS)}")
        if not isinstance(self.bandwidth_kbps, Real):
            raise ConfigError(f"bandwidth={_shown(self.bandwidth_kbps)}; pass a number of kbps")

    @property
    def encodes(self) -> bool:
        """Whether audio comes in."""
        return self.mode != "decode"

    @property
    def decodes(self) -> bool:
        """Whether codes come in."""
        return self.mode in ("decode", "duplex")

    def to_query(self) -> dict[str, str]:
        """The parameters for the URL."""
        return {
            "mode": self.mode,
            "bandwidth": f"{self.bandwidth_kbps:g}",
            "start": self.start,
            "frame": str(self.frame),
            "decoded": str(self.decoded),
        }

    @staticmethod
    def from_query(query: Mapping[str, str]) -> StreamRequest:
        """What a URL asks for. Raises ConfigError, naming what is accepted."""
        unknown = set(query) - {"mode", "bandwidth", "start", "frame", "decoded"}
        if unknown:
            raise ConfigError(f"{min(unknown)[:20]!r} is not a parameter of a stream")
        return StreamRequest(
            query.get("mode", "echo"),  # type: ignore[arg-type]
            _number(query, "bandwidth", "6"),
            query.get("start", "primed"),  # type: ignore[arg-type]
            _index(query, "frame"),
            _index(query, "decoded"),
        )


def _shown(value: object) -> str:
    return repr(value[:20] if isinstance(value, str) else value)


def _number(query: Mapping[str, str], name: str, default: str) -> float:
    try:
        return float(query.get(name, default)[:20])
    except ValueError:
        raise ConfigError(f"{name}={query[name][:20]!r} is not a number") from None


def _index(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > MAX_INDEX:
        raise ConfigError(f"{name}={text[:20]!r}; a whole number up to {MAX_INDEX}")
    return int(text)


def secret_of(offered: Iterable[str], prefix: str) -> str | None:
    """What follows ``prefix`` in the first of the subprotocols ``offered`` that has it."""
    for name in offered:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return None
