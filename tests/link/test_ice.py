from __future__ import annotations

import pytest
from aiortc import RTCIceServer
from aiortc.rtcicetransport import connection_kwargs

from encodec_rt.errors import ConfigError
from encodec_rt.link.ice import IceServer, parse_ice_server


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("stun.example.org:3478", IceServer("stun:stun.example.org:3478")),
        ("192.0.2.7", IceServer("stun:192.0.2.7")),
        ("stun:stun.example.org", IceServer("stun:stun.example.org")),
        ("stun://stun.example.org:19302", IceServer("stun:stun.example.org:19302")),
        ("turn:me:secret@turn.example.org", IceServer("turn:turn.example.org", "me", "secret")),
        (
            "turn:me:p%40ss:w@rd@192.0.2.7:3479?transport=udp",
            IceServer("turn:192.0.2.7:3479?transport=udp", "me", "p@ss:w@rd"),
        ),
        ("turns:me:x@turn.example.org", IceServer("turns:turn.example.org", "me", "x")),
    ],
)
def test_a_server_is_named_as_people_name_it_and_aiortc_takes_it(
    text: str, server: IceServer
) -> None:
    assert parse_ice_server(text) == server
    taken = connection_kwargs([RTCIceServer(server.uri, server.username, server.credential)])
    assert taken.get("turn_username") == server.username
    assert taken


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "accepted"),
        ("http://stun.example.org", "accepted"),
        ("stun:", "accepted"),
        ("stun:a b", "accepted"),
        ("stun.example.org:99999", "1 to 65535"),
        ("turn:turn.example.org", "USER:PASSWORD"),
        ("stun:me:secret@stun.example.org", "no user"),
        ("stuns:stun.example.org", "not supported"),
        ("turn:me:x@turn.example.org?transport=sctp", "accepted"),
        ("turns:me:x@turn.example.org?transport=udp", "by tcp"),
    ],
)
def test_what_names_no_server_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_ice_server(text)
