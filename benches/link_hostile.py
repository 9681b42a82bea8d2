"""What a call withstands: hostile datagrams, payloads and signalling requests while it goes on.

    python -m benches.link_hostile

The same call is held alone and under attack. Both ends are in one process and reach each other by
aiortc over this machine's own addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter

import aiohttp
import numpy as np
import torch
from numpy.typing import NDArray

from benches.link_endurance import SMALL_KBPS, Held, Window, held, small_codec, speech
from benches.record import Json, Record
from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.link.rtp import Received
from encodec_rt.link.signalling import PATH, SDP_TYPE, Limits
from encodec_rt.streaming.codec import Codec

GENEROUS = Limits(requests_per_s=1e6, burst=1_000_000)
"""Requests that a rate limit would refuse unread come further, where they may do more harm."""
PACE_S = 0.02
INSIDE_PER_S = 150
"""Hostile payloads a second by way of the far end itself, encrypted."""


def datagram(rng: np.random.Generator) -> bytes:
    """What somebody without the keys may send to the port of a call."""
    rest = rng.bytes(int(rng.integers(0, 200)))
    heads = (
        b"",
        # RTP of our payload type, RTCP, DTLS records of each kind, STUN.
        *(b"\x80\x76", b"\x90\xf6", b"\x81\xc9\x00\x07", b"\x16\xfe\xfd", b"\x15\xfe\xfd\x00"),
        *(b"\x17\xfe\xfd", b"\x00\x01\x00\x00\x21\x12\xa4\x42"),
    )
    kind = int(rng.integers(len(heads) + 2))
    if kind == len(heads):
        return b""
    if kind > len(heads):
        return bytes([int(rng.integers(256))]) * int(rng.integers(1500, 9000))
    return heads[kind] + rest


def payload(rng: np.random.Generator) -> bytes:
    """What the other end, or whoever took it over, may send encrypted."""
    codes = np.zeros((int(rng.integers(1, 5)), int(rng.integers(1, 33))), np.uint16)
    good = encode_packet(Packet(codes), bits=10)
    kind = int(rng.integers(3))
    if kind == 0:
        return rng.bytes(int(rng.integers(1, 1200)))
    if kind == 1:
        return good[: int(rng.integers(1, len(good)))]
    return good + rng.bytes(int(rng.integers(1, 40)))


@dataclass
class Attack:
    """Hostile datagrams, payloads and requests beside a call."""

    call: Held
    seed: int = 0

    def __post_init__(self) -> None:
        """Nothing was sent yet."""
        self.statuses: Counter[str] = Counter()
        self.datagrams = self.payloads = 0

    async def flood(self, count: int, per_s: float) -> None:
        """Send ``count`` datagrams to the ports of the called end."""
        rng = np.random.default_rng(self.seed)
        # A pool, as making them up would cost more than the call.
        pool = [datagram(rng) for _ in range(5000)]
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

    async def whisper(self, count: int, per_s: float) -> None:
        """Let ``count`` malformed payloads come out of the decryption, under any source."""
        rng = np.random.default_rng(self.seed + 1)
        own = self.call.callee.listener.buffer.source
        async for burst in _paced(count, per_s):
            for _ in range(burst):
                ssrc = own if own is not None and rng.random() < 0.5 else int(rng.integers(1 << 32))
                self.call.callee._on_packet(
                    Received(
                        payload(rng),
                        sequence=int(rng.integers(1 << 16)),
                        timestamp=int(rng.integers(1 << 32)),
                        ssrc=ssrc,
                    )
                )
                self.payloads += 1

    async def knock(self, count: int, per_s: float) -> None:
        """Send ``count`` requests, none of which may become a call."""
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
                        # The server hangs up on a body that it will not read.
                        self.statuses[f"{name}: {type(error).__name__}"] += 1


async def _paced(count: int, per_s: float) -> AsyncIterator[int]:
    """Bursts that make ``count`` in all, ``per_s`` a second at most."""
    started, given = perf_counter(), 0
    while given < count:
        due = min(count, int((perf_counter() - started + PACE_S) * per_s))
        # After a stall nothing is made up for at once.
        burst = min(due - given, max(1, int(4 * PACE_S * per_s)))
        if burst > 0:
            given += burst
            yield burst
        await asyncio.sleep(PACE_S)


async def _heard(call: Held) -> None:
    """Wait until the called end plays what the other said."""
    while not call.callee.listener.statistics.jitterBufferEmittedCount:
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)


async def hostile(
    codec: Codec,
    kbps: float,
    audio: NDArray[np.float32],
    *,
    datagrams: int,
    requests: int,
    per_s: float,
) -> dict[str, dict[str, Json]]:
    """A call alone, and the same call under attack for as long."""
    seconds = datagrams / per_s
    found: dict[str, dict[str, Json]] = {}
    async with held(codec, kbps, audio, GENEROUS) as call:
        await _heard(call)
        window = Window(call.callee.listener, codec.config.hop_length)
        await asyncio.sleep(min(seconds, 120))
        found["alone"] = window.look()
    async with held(codec, kbps, audio, GENEROUS) as call:
        await _heard(call)
        window, attack = Window(call.callee.listener, codec.config.hop_length), Attack(call)
        tasks = len(asyncio.all_tasks())
        parts = asyncio.gather(
            attack.flood(datagrams, per_s),
            attack.whisper(int(INSIDE_PER_S * seconds), INSIDE_PER_S),
            attack.knock(requests, requests / seconds),
        )
        started = perf_counter()
        await asyncio.wait([parts], timeout=seconds / 4)
        first: dict[str, Json] = {f"{k}_first_quarter": v for k, v in window.look().items()}
        await parts
        attacked = perf_counter() - started
        found["under attack"] = {
            **first,
            **window.look(),
            "seconds": attacked,
            "datagrams": attack.datagrams,
            "payloads_inside": attack.payloads,
            "requests": dict(sorted(attack.statuses.items())),
            "sessions": call.server.sessions,
            "tasks_more": len(asyncio.all_tasks()) - tasks,
            "packets_refused": call.callee.refused_packets,
        }
    return found


def main() -> None:
    """Hold both calls and write their record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    parser.add_argument("--small", action="store_true", help="a tiny model with random weights")
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--per-s", type=float, default=4000.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("aioice").setLevel(logging.ERROR)
    codec = small_codec() if arguments.small else Codec.load(arguments.model)
    kbps = SMALL_KBPS if arguments.small else arguments.kbps
    model = "small, random weights" if arguments.small else arguments.model
    record = Record("link-hostile")
    calls = hostile(
        codec,
        kbps,
        speech(codec.config.sampling_rate),
        datagrams=arguments.datagrams,
        requests=arguments.requests,
        per_s=arguments.per_s,
    )
    for name, values in asyncio.run(calls).items():
        case: dict[str, Json] = {"model": model, "kbps": kbps, "call": name}
        record.add(case, values=values)
    print(record.table())
    print(record.write())


if __name__ == "__main__":
    main()
