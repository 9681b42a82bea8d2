"""The opening of a stream, and what comes through it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from aiohttp import hdrs

from encodec_rt.arrays import check_codes
from encodec_rt.bitstream.packet import (
    MAX_BITS,
    Packet,
    encode_packet,
    parse_packet,
)
from encodec_rt.errors import LinkError, PacketError
from encodec_rt.server.protocol import (
    MAX_INDEX,
    MAX_MESSAGE_BYTES,
    PLACE_PATH,
    STREAM_PATH,
    SUBPROTOCOL,
    CloseCode,
    Kind,
    StreamRequest,
    parse_event,
)
from encodec_rt.types import Audio, Codes

NOTHING_KEPT = 409
BAD_REQUEST = 400
"""The answer whose body says why."""
FINAL = {BAD_REQUEST, 401, 403, 404, NOTHING_KEPT}
"""Answers that no further attempt would change."""
WELCOME_S = 10.0
ENDS = {aiohttp.WSCloseCode.OK, *(code for code in CloseCode if code != CloseCode.SLOW)}
"""Close codes of a stream that cannot be resumed."""


@dataclass(frozen=True, eq=False)
class ServedFrame:
    """The result of a frame: codes uint16 [Q], or audio float32 [n] or [channels, n]."""

    index: int
    codes: Codes | None = None
    audio: Audio | None = None


def unpack_frame(kind: Kind, index: int, payload: bytes, welcome: Mapping[str, Any]) -> ServedFrame:
    """What a binary message holds, as the ``welcome`` said it would. Raises PacketError."""
    if kind == Kind.CODES:
        return ServedFrame(index, codes=parse_packet(payload, bits=welcome["bits"]).codes[0])
    channels = welcome["channels"]
    if len(payload) % (2 * channels):
        raise PacketError(f"{len(payload)} bytes of audio; a sample takes {2 * channels}")
    samples = np.frombuffer(payload, "<i2").astype(np.float32) / 32768.0
    audio = samples if channels == 1 else samples.reshape(-1, channels).T
    return ServedFrame(index, audio=audio)


@dataclass(frozen=True)
class Dropped:
    """Frames that were dropped, because the server or its client was too slow."""

    where: Literal["in", "out"]
    first: int
    count: int


def dropped_by(event: Mapping[str, Any]) -> Dropped:
    """What a Dropped event says. Raises PacketError."""
    where: Literal["in", "out"] = "in" if event.get("where") == "in" else "out"
    return Dropped(where, whole_number(event, "first"), whole_number(event, "count"))


def pack_codes(codes: Codes, welcome: Mapping[str, Any]) -> bytes:
    """The payload of a frame's codes [Q]. Raises InputError for anything else."""
    frames = check_codes([codes], 1 << welcome["bits"], welcome["codebooks"])
    return encode_packet(Packet(frames.astype(np.uint16)), bits=welcome["bits"])


class Refused(LinkError):
    """The server refused."""

    def __init__(self, status: int, reason: str = "") -> None:
        told = f": {reason}" if reason else ""
        super().__init__(f"the server refused the stream ({status}){told}")
        self.status = status


@dataclass(frozen=True)
class Place:
    """A server, and how to check its certificate."""

    url: str
    context: ssl.SSLContext | aiohttp.Fingerprint | None


def place_of(url: str, context: ssl.SSLContext | aiohttp.Fingerprint | None) -> Place:
    """The server at ``url``. Raises LinkError if that is not a server's address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc:
        raise LinkError(f"{url!r} is not a server's address; give one such as http://HOST:PORT")
    return Place(url.rstrip("/"), context)


async def ask_placer(
    session: aiohttp.ClientSession, placer: Place, headers: Mapping[str, str], last: str
) -> Place:
    """Where a placer sends a session whose last server was ``last``, if it had one.

    Raises LinkError, and Refused where the placer said no.
    """
    url = placer.url + PLACE_PATH
    ssl_option = placer.context if placer.context is not None else True
    try:
        async with session.get(
            url, params={"last": last} if last else {}, headers=headers, ssl=ssl_option
        ) as answer:
            if answer.status != 200:
                raise Refused(answer.status)
            place = await answer.json()
            pin = place["fingerprint"]
            context = None if pin is None else aiohttp.Fingerprint(bytes.fromhex(pin))
            return Place(str(place["url"]), context)
    except (aiohttp.ContentTypeError, aiohttp.InvalidURL) as error:
        raise LinkError(f"{url} is not a placer's address") from error
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LinkError(f"{url} cannot be reached: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise LinkError(f"{url} is not a placer's: {error!r}") from error


async def send_if_open(socket: aiohttp.ClientWebSocketResponse | None, data: bytes | str) -> None:
    """Send a message or an event; if that fails, it is sent when the stream resumes."""
    if socket is not None:
        with suppress(ConnectionError, RuntimeError):
            await (socket.send_bytes(data) if isinstance(data, bytes) else socket.send_str(data))


def whole_number(event: Mapping[str, Any], name: str, least: int = 0) -> int:
    """A number of an event. Raises PacketError."""
    value = event.get(name)
    if type(value) is not int or not least <= value <= MAX_INDEX:
        raise PacketError(f"a {event['type'][:20]} with {name}={str(value)[:20]}")
    return value


def check_welcome(event: Mapping[str, Any]) -> None:
    """Raise PacketError unless a server of this protocol says so first."""
    if event["type"] != "Welcome":
        raise PacketError(f"a {event['type'][:20]} instead of the server's Welcome")
    for name in ("hop", "channels", "bits", "rate", "codebooks"):
        whole_number(event, name, least=1)
    for name in ("frame", "decoded", "encoder_start_frames", "decoder_start_frames"):
        whole_number(event, name)
    if event["bits"] > MAX_BITS or not isinstance(event.get("resume"), str):
        raise PacketError("a Welcome without a token to resume by, or with codes of too many bits")


async def _reason_of(
    session: aiohttp.ClientSession, place: Place, request: StreamRequest, headers: dict[str, str]
) -> str:
    """Why the server refuses this, asked without an upgrade, since that hides the answer's body."""
    ssl_option = place.context if place.context is not None else True
    with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, LookupError):
        async with session.get(
            place.url + STREAM_PATH,
            params=request.to_query(),
            headers=headers,
            ssl=ssl_option,
            timeout=aiohttp.ClientTimeout(WELCOME_S),
        ) as answer:
            body = json.loads((await answer.content.read(4096)).decode())
            told = str(body["message"]) if isinstance(body, dict) else ""
            return "".join(letter for letter in told if letter.isprintable())[:300]
    return ""


async def open_socket(
    session: aiohttp.ClientSession,
    place: Place,
    request: StreamRequest,
    protocols: Sequence[str],
    headers: Mapping[str, str],
) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
    """A WebSocket and its welcome. Raises LinkError, and Refused where the server said so."""
    url, context = place.url + STREAM_PATH, place.context
    socket = None
    try:
        socket = await session.ws_connect(
            url,
            params=request.to_query(),
            protocols=protocols,
            headers=headers,
            ssl=context if context is not None else True,
            # A reply that arrives too late would hide why the server closed.
            autoclose=False,
            max_msg_size=2 * MAX_MESSAGE_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
        )
        if socket.protocol != SUBPROTOCOL:
            raise LinkError(f"{url} does not speak {SUBPROTOCOL}; it is another server, or newer")
        first = await asyncio.wait_for(socket.receive(), WELCOME_S)
        if first.type != aiohttp.WSMsgType.TEXT:
            raise LinkError(f"{url} closed the stream at once")
        welcome = parse_event(first.data)
        check_welcome(welcome)
        opened, socket = (socket, welcome), None
        return opened
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (101, 200):
            raise LinkError(f"{url} answers, but not as encodec-rt serve does") from error
        reason = ""
        if error.status == BAD_REQUEST:
            asked = {**headers, hdrs.SEC_WEBSOCKET_PROTOCOL: ", ".join(protocols)}
            reason = await _reason_of(session, place, request, asked)
        raise Refused(error.status, reason) from error
    except PacketError as error:
        raise LinkError(f"{url} answers, but not as encodec-rt serve does: {error}") from error
    except LinkError:
        raise
    except asyncio.TimeoutError as error:
        raise LinkError(f"{url} did not answer within {WELCOME_S:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # An impossible name raises ValueError.
        raise LinkError(f"{url} cannot be reached: {error}") from error
    finally:
        if socket is not None:
            await socket.close()
