from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from encodec_rt.errors import AudioDeviceError, CodecError, InputError, LinkError
from encodec_rt.link import credentials
from encodec_rt.link.admission import MAX_ADDRESSES, Admission, ConnectionLimits, RateLimit
from encodec_rt.link.dialling import SessionEnded, SignallingClient, certificate_problem
from encodec_rt.link.listening import Listener
from encodec_rt.link.signalling import Limits, SignallingServer
from encodec_rt.link.whip import REMEMBERED, SDP_TYPE

TOKEN = "a-token-of-more-than-thirty-two-letters"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": SDP_TYPE}
PATIENT = Limits(requests_per_s=1e6, burst=1_000_000)


OFFERS = count()


def offer() -> str:
    """One that nobody has made before."""
    return f"a=fingerprint:sha-256 {next(OFFERS):02X}"


class Lines:
    """Stands for the calls behind a server: answers "answer", refuses what is garbage."""

    def __init__(self, *, slow_s: float = 0.0) -> None:
        self.opened = self.hung_up = self.renewed = 0
        self.lost = False
        self.slow_s = slow_s

    def open(self) -> FakeLine:
        self.opened += 1
        return FakeLine(self)


class FakeLine:
    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._end = asyncio.Event()

    async def answer(self, offer: str) -> str:
        await asyncio.sleep(self._lines.slow_s)
        if "garbage" in offer:
            raise LinkError("garbage")
        return "answer"

    @property
    def is_lost(self) -> bool:
        return self._lines.lost

    async def renew(self, offer: str) -> str:
        self._lines.renewed += 1
        return await self.answer(offer)

    async def run(self) -> None:
        await self._end.wait()

    async def close(self) -> None:
        self._lines.hung_up += not self._end.is_set()
        self._end.set()


def serve(
    scenario: Callable[[SignallingServer, Lines, str], Coroutine[Any, Any, None]],
    *,
    token: str | None = TOKEN,
    limits: Limits = PATIENT,
    context: ssl.SSLContext | None = None,
    slow_s: float = 0.0,
    **changes: Any,
) -> None:
    """Run ``scenario`` against a server on a free port of this machine."""

    async def main() -> None:
        line = Lines(slow_s=slow_s)
        server = SignallingServer(line.open, token=token, limits=limits, **changes)
        port = await server.start("127.0.0.1", 0, context)
        scheme = "http" if context is None else "https"
        try:
            await scenario(server, line, f"{scheme}://127.0.0.1:{port}")
        finally:
            await server.close()

    asyncio.run(main())


async def post(url: str, body: bytes | None = None, **headers: str | None) -> int:
    wanted = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent = {name: value for name, value in wanted.items() if value is not None}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url + "/call", data=offer() if body is None else body, headers=sent
        ) as response,
    ):
        return response.status


def test_an_offer_is_answered_and_deleting_its_location_hangs_up() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        dialled = await client.dial(offer())
        assert dialled.answer == "answer"
        assert server.sessions == 1
        await client.hang_up(dialled.location)
        assert line.hung_up == 1
        await asyncio.sleep(0)
        assert server.sessions == 0

    serve(scenario)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (401, None, {"Authorization": None}),
        (401, None, {"Authorization": f"Bearer {TOKEN}x"}),
        (401, None, {"Authorization": TOKEN}),
        (403, None, {"Origin": "https://evil.example"}),
        (415, None, {"Content_Type": "text/plain"}),
        (413, b"x" * 70_000, {}),
        (400, b"no fingerprint", {}),
        (400, b"a=fingerprint:sha-256 FF\ngarbage", {}),
        (400, b"".join(b"a=fingerprint:x %d\n" % number for number in range(9)), {}),
        (400, b"a=fingerprint:x " + b"F" * 201, {}),
        (400, b"\xff\xfe", {}),
    ],
)
def test_what_may_not_call_is_refused_without_a_session(
    status: int, body: bytes | None, headers: dict[str, str]
) -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        assert await post(url, body, **headers) == status
        assert server.sessions == 0
        assert line.opened == line.hung_up

    serve(scenario)


def test_a_page_from_an_accepted_origin_may_call() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        assert await post(url, Origin="https://page.example") == 201

    serve(scenario, origins=frozenset({"https://page.example"}))


def test_the_line_is_busy_until_the_call_ends() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        first = await client.dial(offer())
        with pytest.raises(LinkError, match="busy"):
            await client.dial(offer())
        assert line.opened == 1
        await client.hang_up(first.location)
        await asyncio.sleep(0)
        await client.dial(offer())

    serve(scenario)


def test_a_call_goes_on_at_its_location_and_at_no_other() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        first = await client.dial(offer())
        again = await client.dial(offer(), location=first.location)
        assert again.answer == "answer"
        assert (line.opened, line.renewed, server.sessions) == (1, 1, 1)
        with pytest.raises(SessionEnded, match="ended the call meanwhile"):
            await client.dial(offer(), location=first.location + "x")
        with pytest.raises(LinkError, match="token"):
            await SignallingClient(url, token=f"{TOKEN}x").dial(offer(), location=first.location)
        assert line.renewed == 1

    serve(scenario)


def test_a_call_whose_caller_has_gone_makes_room_for_another() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        await client.dial(offer())
        line.lost = True
        await client.dial(offer())
        assert (line.opened, line.hung_up, server.sessions) == (2, 1, 1)

    serve(scenario)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AudioDeviceError("no microphone was found; plug one in"), "other side has no microphone"),
        (AudioDeviceError("the microphone 'Desk' opens neither"), "cannot open its microphone"),
        (AudioDeviceError("the speaker 'Desk' cannot be opened"), "cannot open its speaker"),
        (InputError("/home/me/said.wav does not exist"), "cannot open the files"),
    ],
)
def test_a_caller_hears_why_nobody_can_answer_without_names(error: CodecError, told: str) -> None:
    def refuse() -> FakeLine:
        raise error

    async def main() -> None:
        server = SignallingServer(refuse, token=TOKEN, limits=PATIENT)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}"
        with pytest.raises(LinkError, match=told) as refusal:
            await SignallingClient(url, token=TOKEN).dial(offer())
        assert "Desk" not in str(refusal.value)
        assert "/home" not in str(refusal.value)
        await server.close()

    asyncio.run(main())


def test_calls_being_set_up_count_as_sessions() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        statuses = await asyncio.gather(*(post(url) for _ in range(6)))
        assert sorted(statuses) == [201] + [503] * 5

    serve(scenario, slow_s=0.2)


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        assert await post(url) == 503
        assert (server.sessions, line.hung_up) == (0, 1)

    serve(scenario, slow_s=5.0, limits=Limits(request_s=0.05))


def test_a_body_that_never_comes_is_given_up() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = [f"{name}: {value}" for name, value in {**HEADERS, "Content-Length": "9"}.items()]
        writer.write("\r\n".join(["POST /call HTTP/1.1", "Host: x", *head, "", ""]).encode())
        assert b"408" in await reader.readline()
        writer.close()
        assert (server.sessions, line.opened) == (0, 0)

    serve(scenario, limits=Limits(request_s=0.05))


def test_an_offer_is_taken_once_whoever_sends_it_again() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client, made = SignallingClient(url, token=TOKEN), offer() + "\r\na=fingerprint:sha-512 AB"
        await client.hang_up((await client.dial(made)).location)
        await asyncio.sleep(0)
        for replayed in (made, made.lower(), made.partition("\r")[0], "a=ice-ufrag:x\n" + made):
            with pytest.raises(LinkError, match="took this offer before"):
                await client.dial(replayed)
        assert line.opened == 1
        await client.dial(offer())

    serve(scenario)


def test_offers_that_were_taken_are_forgotten_only_after_thousands() -> None:
    server = SignallingServer(Lines().open, token=TOKEN)
    for number in range(REMEMBERED + 1):
        server._whip._take(f"a=fingerprint:sha-256 {number}")
    with pytest.raises(web.HTTPConflict):
        server._whip._take("a=fingerprint:sha-256 1")
    server._whip._take("a=fingerprint:sha-256 0")
    assert len(server._whip._taken) == REMEMBERED


async def knock(url: str, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(data)
    return reader, writer


@pytest.mark.parametrize("data", [b"", b"POST /call HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_is_ended_in_time_whatever_it_brings(data: bytes) -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        reader, writer = await knock(url, data)
        while await asyncio.wait_for(reader.read(1000), 5):
            pass
        writer.close()
        assert await post(url) == 201

    serve(scenario, limits=replace(PATIENT, connections=ConnectionLimits(connection_s=0.2)))


def test_a_handshake_that_is_never_made_is_ended_in_time(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    credentials.make_certificate(certificate, key, ["127.0.0.1"])

    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        reader, writer = await knock(url)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    serve(
        scenario,
        context=credentials.server_context(certificate, key),
        limits=replace(PATIENT, connections=ConnectionLimits(handshake_s=0.05)),
    )


@pytest.mark.parametrize(
    "connections", [ConnectionLimits(connections=2), ConnectionLimits(per_address=2)]
)
def test_more_connections_than_there_is_room_for_are_hung_up_on(
    connections: ConnectionLimits,
) -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        inside = [await knock(url) for _ in range(2)]
        reader, writer = await knock(url)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        with pytest.raises(aiohttp.ClientError):
            await post(url)
        for _, each in inside:
            each.close()
            await each.wait_closed()
        assert server.listener.admission is not None
        while server.listener.admission.connections:
            await asyncio.sleep(0.01)
        assert await post(url) == 201

    serve(scenario, limits=replace(PATIENT, connections=connections))


def test_a_thousand_connections_one_after_another_leave_nothing_behind() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        for _ in range(1000):
            _, writer = await knock(url)
            writer.close()
        assert server.listener.admission is not None
        while server.listener.admission.connections or len(server.listener.admission._tasks) > 1:
            await asyncio.sleep(0.01)
        assert await post(url) == 201

    serve(scenario)


def test_other_paths_and_other_calls_cannot_be_reached() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        await client.dial(offer())
        async with aiohttp.ClientSession() as session:
            for method, path, status in (
                ("GET", "/", 404),
                ("GET", "/call", 405),
                ("DELETE", "/call/guess", 404),
            ):
                async with session.request(method, url + path, headers=HEADERS) as response:
                    assert response.status == status
        assert server.sessions == 1

    serve(scenario)


def test_too_many_requests_from_one_address_are_refused() -> None:
    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        statuses = [await post(url, Authorization="Bearer wrong") for _ in range(6)]
        assert statuses == [401] * 4 + [429] * 2

    serve(scenario, limits=Limits(requests_per_s=0.001, burst=4))


def test_the_rate_limit_forgives_with_time_and_forgets_addresses() -> None:
    limit = RateLimit(per_s=1.0, burst=2)
    assert [limit.allows("a", now) for now in (0.0, 0.0, 0.0, 0.5, 1.6)] == [
        *(True, True, False, False, True)
    ]
    for number in range(5 * MAX_ADDRESSES):
        limit.allows(str(number), 2.0)
    assert len(limit) == MAX_ADDRESSES


def hostile_requests(count: int) -> None:
    """Requests of every bad kind, with a call in progress that must go on."""

    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        client = SignallingClient(url, token=TOKEN)
        await client.dial(offer())
        rng = np.random.default_rng(0)
        kinds: list[tuple[dict[str, str], int]] = [
            ({"Authorization": "Bearer " + "x" * 40}, 401),
            ({"Origin": "https://evil.example"}, 403),
            ({"Content-Type": "text/html"}, 415),
            ({}, 503),
        ]
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                headers, status = kinds[rng.integers(len(kinds))]
                body = rng.bytes(int(rng.integers(0, 3000)))
                async with session.post(
                    url + "/call", data=body, headers={**HEADERS, **headers}
                ) as response:
                    assert response.status == status
                assert server.sessions == 1
        assert (server.sessions, line.opened, line.hung_up) == (1, 1, 0)

    serve(scenario)


def test_hostile_requests_leave_the_call_in_progress_alone() -> None:
    hostile_requests(2_000)


def test_only_loopback_goes_without_tls_and_token(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    credentials.make_certificate(certificate, key, ["localhost"])
    context = credentials.server_context(certificate, key)

    async def main() -> None:
        for token, tls in ((None, None), (TOKEN, None), (None, context)):
            server = SignallingServer(Lines().open, token=token)
            with pytest.raises(LinkError, match="needs TLS and a token"):
                await server.start("0.0.0.0", 0, tls)

    asyncio.run(main())
    with pytest.raises(LinkError, match="https"):
        SignallingClient("http://192.0.2.1:8443", token=TOKEN)


def test_a_pinned_certificate_is_accepted_and_any_other_is_not(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    credentials.make_certificate(certificate, key, ["127.0.0.1"])
    pinned = credentials.read_fingerprint(certificate)

    async def scenario(server: SignallingServer, line: Lines, url: str) -> None:
        with pytest.raises(LinkError, match="not the pinned one"):
            await SignallingClient(url, token=TOKEN, fingerprint="00" * 32).dial(offer())
        with pytest.raises(LinkError, match="pin it with --fingerprint"):
            await SignallingClient(url, token=TOKEN).dial(offer())
        assert line.opened == 0
        dialled = await SignallingClient(url, token=TOKEN, fingerprint=pinned).dial(offer())
        assert dialled.answer == "answer"

    serve(scenario, context=credentials.server_context(certificate, key))


def test_a_server_that_is_not_there_is_named() -> None:
    async def main() -> None:
        with pytest.raises(
            LinkError, match=r"^http://127\.0\.0\.1:1 cannot be reached: [\w ]+\.?$"
        ):
            await SignallingClient("http://127.0.0.1:1", token=None).dial(offer())

    asyncio.run(main())


NO_ADDRESSES = ("", "host:8443", "ftp://host", "https://", "http://[::1", "https://h:99999")


@pytest.mark.parametrize("url", [*NO_ADDRESSES, "https://user:word@h", "https://h:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(LinkError, match="address to call"):
        SignallingClient(url, token=None)


@pytest.mark.parametrize(("port", "secure"), [(80, False), (443, True), (8443, True)])
def test_of_its_usual_port_a_browser_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int, secure: bool
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(certificate, key, ["localhost"])
    context = credentials.server_context(certificate, key) if secure else None

    async def opened(*_: object) -> int:
        return port

    monkeypatch.setattr(Admission, "open", opened)

    async def main() -> None:
        listener = Listener()
        limits = ConnectionLimits()
        await listener.open(web.Application(), ("127.0.0.1", port), limits, context, has_token=True)
        assert f"localhost:{port}" in listener.hosts
        assert ("localhost" in listener.hosts) is (port != 8443)
        await listener.close()

    asyncio.run(main())


@pytest.mark.parametrize("host", ["x" * 70, "no-such.invalid"])
def test_a_host_that_cannot_be_listened_on_is_named(tmp_path: Path, host: str) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(certificate, key, ["localhost"])
    context = credentials.server_context(certificate, key)

    async def main() -> None:
        with pytest.raises(LinkError, match=f"^cannot listen on {host} port 0: "):
            await Listener().open(
                web.Application(), (host, 0), ConnectionLimits(), context, has_token=True
            )

    asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "told"), [(10, "has expired"), (62, "another name"), (18, "not signed by")]
)
def test_a_certificate_is_refused_for_its_own_reason(number: int, told: str) -> None:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code = number
    assert told in certificate_problem(error)
