"""STUN and TURN servers as people write them (RFC 7064, RFC 7065)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from encodec_rt.errors import ConfigError

_FORM = re.compile(
    r"(?:(?P<scheme>stuns?|turns?):(?://)?)?"
    r"(?:(?P<user>[^@:]*):(?P<password>.*)@)?"
    r"(?P<host>[\w.-]+)(?::(?P<port>\d{1,5}))?(?:\?transport=(?P<transport>udp|tcp))?"
)
_ACCEPTED = "HOST:PORT, stun:HOST, turn:USER:PASSWORD@HOST or turn:USER:PASSWORD@HOST?transport=udp"


@dataclass(frozen=True)
class IceServer:
    """One server: its URI, and for TURN the credentials."""

    uri: str
    username: str | None = None
    credential: str | None = None


def parse_ice_server(text: str) -> IceServer:
    """The server that ``text`` names; ``HOST:PORT`` alone is a STUN server.

    Reserved characters in a user name or password are written %XX. Raises ConfigError.
    """
    match = _FORM.fullmatch(text)
    if match is None or not match["host"].strip("."):
        raise ConfigError(f"ICE server {text!r}; accepted: {_ACCEPTED}")
    scheme = match["scheme"] or ("stun" if match["user"] is None else "turn")
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        raise ConfigError(f"ICE server {text!r}: a port is a number from 1 to 65535")
    if scheme == "stuns":
        raise ConfigError(f"ICE server {text!r}: STUN over TLS is not supported; use stun:")
    if scheme.startswith("turn") and not match["user"]:
        raise ConfigError(f"ICE server {text!r}: a TURN server needs turn:USER:PASSWORD@HOST")
    if scheme == "stun" and (match["user"] is not None or match["transport"] is not None):
        raise ConfigError(
            f"ICE server {text!r}: a STUN server takes no user, password or transport"
        )
    if scheme == "turns" and match["transport"] == "udp":
        raise ConfigError(f"ICE server {text!r}: TURN over TLS goes by tcp")
    port = f":{match['port']}" if match["port"] else ""
    transport = f"?transport={match['transport']}" if match["transport"] else ""
    uri = f"{scheme}:{match['host']}{port}{transport}"
    if match["user"] is None:
        return IceServer(uri)
    return IceServer(uri, unquote(match["user"]), unquote(match["password"]))
