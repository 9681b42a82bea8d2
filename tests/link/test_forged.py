"""Forged datagrams and packets, while a call is set up and while it goes on."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.link.hardening import MAX_SOURCES
from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, tiny_config

ALERT = bytes.fromhex("15fefd 0000 000000000000 0002 0228")
CLOSE_NOTIFY = bytes.fromhex("15fefd 0000 000000000000 0002 0100")
SEALED_ALERT = bytes.fromhex("15fefd 0001 000000000009 0018") + bytes(24)
OUT_OF_PLACE = bytes.fromhex("16fefd 0000 000000000000 0010 03000004 0000 000000 000004") + b"xxxx"
CUT_HELLO = bytes.fromhex("16fefd 0000 000000000000 0020 01000014 0000 000000 000014") + b"\xfe\xfd"
CUT_CHECK = bytes.fromhex("00010006 2112a442") + b"x" * 12 + bytes.fromhex("0024 0002 6162")
RTCP = b"\x81\xc9\x00\x07" + bytes(40)
FORGED = {
    "alert": ALERT,
    "close notify": CLOSE_NOTIFY,
    "encrypted alert": SEALED_ALERT,
    "message out of place": OUT_OF_PLACE,
    "cut client hello": CUT_HELLO,
    "garbage record": b"\x16\xfe\xfd" + b"\x55" * 80,
    "check that cannot be read": CUT_CHECK,
    "rtcp": RTCP,
    "rtp": b"\x80\x76" + bytes(60),
    "empty": b"",
    "long": b"\x80\x76" + bytes(2100),
}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


def new_call(codec: Codec) -> Call:
    options = CallOptions(bandwidth_kbps=codec.config.target_bandwidths[-1], dtx=False)
    return Call(codec, SilentSource(codec.config), NullSink(codec.config), options)


def dtls_of(call: Call) -> Any:
    return call.transport._connection.getTransceivers()[0].receiver.transport


def inject(call: Call, other: Call, datagram: bytes) -> None:
    """What a datagram does that seems to come from the other end's own address."""
    ice = dtls_of(call).transport._connection
    theirs = dtls_of(other).transport._connection.local_candidates
    for endpoint in ice._protocols:
        for candidate in theirs:
            endpoint.datagram_received(datagram, (candidate.host, candidate.port))


async def until(condition: Callable[[], bool], *running: asyncio.Task[None]) -> None:
    """Wait for what comes in a moment, on a busy machine in some moments."""
    for _ in range(2000):
        if condition():
            return
        assert not any(task.done() for task in running), "the call has ended"
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")


async def set_up(
    one: Call, other: Call, disturb: Callable[[], None] = lambda: None
) -> list[asyncio.Task[None]]:
    """Both ends connected, with ``disturb`` called all the time until they are."""
    await one.accept(await other.answer(await one.offer()))
    running = [asyncio.create_task(call.run()) for call in (one, other)]

    def connected() -> bool:
        disturb()
        return one.transport._connected.is_set() and other.transport._connected.is_set()

    await until(connected, *running)
    return running


async def goes_on(one: Call, other: Call, running: list[asyncio.Task[None]]) -> None:
    """See packets come, both ways, and hang up."""
    for call in (one, other):
        counts = call.listener.statistics
        packets = counts.packetsReceived
        await until(lambda: counts.packetsReceived > packets + 20, *running)  # noqa: B023
    await one.close()
    await other.close()
    await asyncio.gather(*running)


@pytest.mark.parametrize("kind", ["alert", "cut client hello", "check that cannot be read"])
def test_a_stranger_cannot_keep_a_call_from_coming_about(codec: Codec, kind: str) -> None:
    async def main() -> None:
        one, other = new_call(codec), new_call(codec)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:

            def disturb() -> None:
                for call in (one, other):
                    sdp = call.transport._connection.localDescription.sdp
                    for host, port in re.findall(r"udp \d+ ([\d.]+) (\d+) typ host", sdp):
                        sending.sendto(FORGED[kind], (host, int(port)))

            running = await set_up(one, other, disturb)
        await goes_on(one, other, running)

    asyncio.run(main())


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_nor_can_one_who_forges_the_other_ends_address(codec: Codec, forged: bytes) -> None:
    async def main() -> None:
        one, other = new_call(codec), new_call(codec)

        def disturb() -> None:
            inject(one, other, forged)
            inject(other, one, forged)

        await goes_on(one, other, await set_up(one, other, disturb))

    asyncio.run(main())


def test_a_forged_address_ends_no_call_that_goes_on(codec: Codec) -> None:
    async def main() -> None:
        one, other = new_call(codec), new_call(codec)
        running = await set_up(one, other)
        rng = np.random.default_rng(0)
        for forged in FORGED.values():
            for _ in range(20):
                for datagram in (forged, forged + rng.bytes(30)):
                    inject(one, other, datagram)
                    inject(other, one, datagram)
            await asyncio.sleep(0)
        await goes_on(one, other, running)

    asyncio.run(main())


def test_datagrams_that_nobody_takes_do_not_pile_up(codec: Codec) -> None:
    async def main() -> None:
        one, other = new_call(codec), new_call(codec)
        await one.accept(await other.answer(await one.offer()))
        for _ in range(5000):
            inject(other, one, RTCP)
        assert dtls_of(other).transport._connection._queue.qsize() <= 256
        for call in (one, other):
            await call.close()

    asyncio.run(main())


def test_packets_that_cannot_be_read_end_no_call_though_they_are_encrypted(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    # A header extension with our number and a length of one byte, where three belong.
    broken = b"\x90\x76\x00\x01" + bytes(4) + b"abcd" + b"\xbe\xde\x00\x01" + b"\x30\x01\x00\x00"

    async def main() -> None:
        one, other = new_call(codec), new_call(codec)
        running = await set_up(one, other)
        await until(lambda: other.listener.statistics.packetsReceived > 0, *running)
        sending = dtls_of(one)
        for at in range(300):
            head = bytes([0x80 | at % 32, 200 + at % 8, 0, at % 12])
            await sending._send_rtp(head + rng.bytes(4 * (at % 12)) + rng.bytes(8))
            source = int(rng.integers(1 << 32)).to_bytes(4, "big")
            await sending._send_rtp(broken[:8] + source + broken[12:])
            await asyncio.sleep(0)
        await goes_on(one, other, running)
        assert len(dtls_of(other)._rtp_router.ssrc_table) <= MAX_SOURCES + 1

    asyncio.run(main())
