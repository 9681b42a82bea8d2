"""A call under attack: hostile datagrams, payloads and signalling requests while it runs.

    python -m benches.link.hostile

Both ends and the attacker are separate processes. The same call runs undisturbed and under attack.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import aiohttp
import numpy as np

from benches.environment import Json
from benches.link.calls import ModelChoice, add_arguments
from benches.link.far import Apart, FarEnd, KnownCall, poll
from benches.record import Record
from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.link.admission import ConnectionLimits
from encodec_rt.link.signalling import Limits
from encodec_rt.link.whip import PATH, SDP_TYPE
from encodec_rt.voice.packetizer import Outgoing

GENEROUS = Limits(
    requests_per_s=1e6,
    burst=1_000_000,
    connections=replace(ConnectionLimits(), connection_s=3600.0),
)
"""Limits so high that requests are not refused unread and can do more harm."""
PACE_S = 0.02
INSIDE_PER_S = 150
"""Hostile payloads per second that the far end itself sends, encrypted."""
ALONE_S = 120
STUN_COOKIE = b"\x21\x12\xa4\x42"


def datagram(rng: np.random.Generator, name: str) -> bytes:
    """A random datagram that someone without the keys may send to the port of a call.

    ``name`` is the user fragment in its ICE checks, which are not encrypted.
    """
    rest = rng.bytes(int(rng.integers(0, 200)))
    heads = (
        b"",
        # RTP of our payload type, RTCP, DTLS records of each kind, STUN.
        *(b"\x80\x76", b"\x90\xf6", b"\x81\xc9\x00\x07", b"\x16\xfe\xfd", b"\x15\xfe\xfd\x00"),
        *(b"\x17\xfe\xfd", b"\x00\x01\x00\x00" + STUN_COOKIE),
    )
    kind = int(rng.integers(len(heads) + 3))
    if kind == len(heads):
        return b""
    if kind == len(heads) + 1:
        # This one has to be parsed completely before it turns out to be forged.
        user = f"{name}:{rng.bytes(2).hex()}".encode()
        claims = b"\x00\x06" + len(user).to_bytes(2, "big") + user
        claims += bytes(-len(claims) % 4) + b"\x00\x08\x00\x14" + rng.bytes(20)
        return b"\x00\x01" + len(claims).to_bytes(2, "big") + STUN_COOKIE + rng.bytes(12) + claims
    if kind > len(heads):
        return bytes([int(rng.integers(256))]) * int(rng.integers(1500, 9000))
    return heads[kind] + rest


def payload(rng: np.random.Generator) -> bytes:
    """A random payload that the other end, or whoever controls it, may send encrypted."""
    codes = np.zeros((int(rng.integers(1, 5)), int(rng.integers(1, 33))), np.uint16)
    good = encode_packet(Packet(codes), bits=10)
    kind = int(rng.integers(3))
    if kind == 0:
        return rng.bytes(int(rng.integers(1, 1200)))
    if kind == 1:
        return good[: int(rng.integers(1, len(good)))]
    return good + rng.bytes(int(rng.integers(1, 40)))


async def whisper(end: FarEnd, *, count: int, per_s: float, seed: int = 1) -> dict[str, Json]:
    """Make the far end itself send ``count`` malformed payloads beside its audio."""
    rng = np.random.default_rng(seed)
    async for burst in _paced(count, per_s):
        for _ in range(burst):
            timestamp = int(rng.integers(1 << 31))
            end.call.transport.send(Outgoing(payload(rng), timestamp, marker=rng.random() < 0.5))
    return {"payloads_inside": count}


@dataclass
class Attack:
    """Hostile datagrams and requests by someone who knows everything about a call but its keys."""

    call: KnownCall
    seed: int = 0

    def __post_init__(self) -> None:
        """Start counting at 0."""
        self.statuses: Counter[str] = Counter()
        self.datagrams = 0

    async def flood(self, count: int, per_s: float) -> None:
        """Send ``count`` datagrams to the ports of the called end."""
        rng = np.random.default_rng(self.seed)
        # A pool, since generating each would take more CPU time than the call.
        pool = [datagram(rng, self.call.name) for _ in range(5000)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            async for burst in _paced(count, per_s):
                for _ in range(burst):
                    try:
                        to = self.call.addresses[self.datagrams % len(self.call.addresses)]
                        sending.sendto(pool[int(rng.integers(len(pool)))], to)
                    except BlockingIOError:
                        continue
                    self.datagrams += 1

    async def knock(self, count: int, per_s: float) -> None:
        """Send ``count`` requests, none of which may lead to a call."""
        rng = np.random.default_rng(self.seed + 2)
        genuine = {"Authorization": f"Bearer {self.call.token}", "Content-Type": SDP_TYPE}
        kinds: list[tuple[str, dict[str, str], bytes | None]] = [
            ("wrong token", {"Authorization": "Bearer " + "x" * 43}, self.call.offer.encode()),
            ("garbage", {}, None),
            ("oversize", {"Authorization": "Bearer x"}, b"v" * 100_000),
            ("oversize with token", {}, b"v" * 100_000),
            ("replay", {}, self.call.offer.encode()),
            ("web page", {"Origin": "https://evil.example"}, self.call.offer.encode()),
            ("other content", {"Content-Type": "text/html"}, b"<html>"),
        ]
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async for burst in _paced(count, per_s):
                for _ in range(burst):
                    name, headers, body = kinds[int(rng.integers(len(kinds)))]
                    body = rng.bytes(int(rng.integers(0, 3000))) if body is None else body
                    try:
                        async with session.post(
                            self.call.url + PATH, data=body, headers=genuine | headers
                        ) as response:
                            self.statuses[f"{name}: {response.status}"] += 1
                    except aiohttp.ClientError as error:
                        # The server closes the connection if it refuses to read a body.
                        self.statuses[f"{name}: {type(error).__name__}"] += 1


async def _paced(count: int, per_s: float) -> AsyncIterator[int]:
    """Sizes of bursts that add up to ``count``, at most ``per_s`` per second."""
    started, given = perf_counter(), 0
    while given < count:
        due = min(count, int((perf_counter() - started + PACE_S) * per_s))
        # After a stall the backlog is not sent all at once.
        burst = min(due - given, max(1, int(4 * PACE_S * per_s)))
        if burst > 0:
            given += burst
            yield burst
        await asyncio.sleep(PACE_S)


async def hostile(
    model: ModelChoice, *, datagrams: int, requests: int, per_s: float
) -> dict[str, dict[str, Json]]:
    """Run a call undisturbed, then under attack -> the called end's figures of each phase."""
    seconds = datagrams / per_s
    call = await Apart.begin(model, GENEROUS)
    await call.callee.do(poll)
    await asyncio.sleep(min(seconds, ALONE_S))
    found = {"alone": await call.callee.do(poll)}
    attack = Attack(call.dialled)
    started = perf_counter()
    parts = asyncio.gather(
        attack.flood(datagrams, per_s),
        attack.knock(requests, requests / seconds),
        call.caller.do(
            partial(whisper, count=int(INSIDE_PER_S * seconds), per_s=float(INSIDE_PER_S))
        ),
    )
    await asyncio.wait([parts], timeout=seconds / 4)
    first = await call.callee.do(poll)
    _, _, inside = await parts
    rest = await call.callee.do(poll)
    found["under attack, first quarter"] = first
    found["under attack, the rest"] = {
        **rest,
        **inside,
        "seconds": perf_counter() - started,
        "datagrams": attack.datagrams,
        "requests": dict(sorted(attack.statuses.items())),
    }
    await call.end()
    return found


def main() -> None:
    """Run the call, and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--per-s", type=float, default=4000.0)
    arguments = parser.parse_args()
    model = ModelChoice.from_arguments(arguments)
    record = Record("link-hostile")
    calls = hostile(
        model,
        datagrams=arguments.datagrams,
        requests=arguments.requests,
        per_s=arguments.per_s,
    )
    for name, values in asyncio.run(calls).items():
        record.add({**model.case, "call": name}, values=values)
    print(record.table())
    print(record.write())


if __name__ == "__main__":
    main()
