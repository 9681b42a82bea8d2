"""Calls that go on while somebody does their worst; the whole number of attacks is a bench."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from benches.link.calls import Window, calling, listening
from benches.link.far import FarEnd, KnownCall
from benches.link.hostile import GENEROUS, Attack, whisper
from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, speech, tiny_config

REFUSALS = {"400", "401", "403", "413", "415", "503"}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes in a moment, on a busy machine in some moments."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")


def survive(codec: Codec, attack: Callable[[KnownCall, FarEnd], Awaitable[None]]) -> None:
    """Hold a call, attack it, and see that it goes on: more packets come and are played."""

    async def main() -> None:
        kbps, rate_hz = codec.config.target_bandwidths[-1], codec.config.sampling_rate
        said = speech(2 * rate_hz).numpy()
        async with (
            listening(codec, kbps, said, GENEROUS) as line,
            calling(codec, kbps, said, line.url, line.token) as made,
        ):
            callee = line.calls[0]
            counts = callee.listener.statistics
            await until(lambda: counts.jitterBufferEmittedCount > 0)
            tasks = len(asyncio.all_tasks())
            window = Window(made.call.listener, codec.config.hop_length)
            await attack(
                KnownCall(line.url, line.token, made.offer, made.addresses, made.name),
                FarEnd(made.call, window, None),
            )
            packets, played = counts.packetsReceived, counts.jitterBufferEmittedCount
            await until(lambda: counts.packetsReceived > packets + 30)
            await until(lambda: counts.jitterBufferEmittedCount > played)
            # Nothing that the attack began is still under way.
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert line.server.sessions == 1
            assert callee.listener.buffer.waiting < 2 * codec.config.frame_rate

    asyncio.run(main())


@pytest.mark.parametrize("fatal", [b"", b"\x80\x76" + bytes(2100), b"\x80\xc9" + bytes(5000)])
def test_no_datagram_from_outside_ends_a_call(codec: Codec, fatal: bytes) -> None:
    async def attack(call: KnownCall, far: FarEnd) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for address in call.addresses:
                sending.sendto(fatal, address)
        await asyncio.sleep(0.1)

    survive(codec, attack)


def test_a_call_goes_on_under_every_kind_of_attack_at_once(codec: Codec) -> None:
    statuses: dict[str, int] = {}

    async def attack(call: KnownCall, far: FarEnd) -> None:
        hostile = Attack(call)
        await asyncio.gather(
            hostile.flood(4000, 2000),
            whisper(far, count=200, per_s=100),
            hostile.knock(120, 60),
        )
        statuses.update(hostile.statuses)

    survive(codec, attack)
    assert sum(statuses.values()) == 120
    # A server that hangs up on a body shows as an error of the client.
    told = {name.rpartition(": ")[2] for name in statuses}
    assert {status for status in told if status.isdecimal()} <= REFUSALS
