"""Calls that go on while somebody does their worst; the whole number of attacks is a bench."""

from __future__ import annotations

import asyncio
import socket

import pytest

from benches.link_endurance import Held, Window, held
from benches.link_hostile import GENEROUS, Attack
from encodec_rt.streaming.codec import Codec
from models import random_model, speech, tiny_config

REFUSALS = {"400", "401", "403", "413", "415", "503"}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


async def hold(codec: Codec, seconds: float, attack=None) -> dict:
    """What the called end heard in ``seconds``, from when it hears anything at all."""
    kbps, rate_hz = codec.config.target_bandwidths[-1], codec.config.sampling_rate
    async with held(codec, kbps, speech(2 * rate_hz).numpy(), GENEROUS) as call:
        counts = call.callee.listener.statistics
        for _ in range(1000):
            if counts.packetsReceived:
                break
            await asyncio.sleep(0.01)
        window = Window(call.callee.listener, codec.config.hop_length)
        if attack is not None:
            await attack(call)
        await asyncio.sleep(seconds)
        assert call.server.sessions == 1
        return window.look()


@pytest.mark.parametrize("fatal", [b"", b"\x80\x76" + bytes(2100), b"\x80\xc9" + bytes(5000)])
def test_no_datagram_from_outside_ends_a_call(codec: Codec, fatal: bytes):
    async def attack(call: Held) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for address in call.addresses:
                sending.sendto(fatal, address)

    heard = asyncio.run(hold(codec, 0.7, attack))
    assert heard["packets_received"] > 0.3 * 0.7 * codec.config.frame_rate


def test_a_call_goes_on_under_every_kind_of_attack_at_once(codec: Codec):
    statuses: dict[str, int] = {}

    async def attack(call: Held) -> None:
        tasks = len(asyncio.all_tasks())
        hostile = Attack(call)
        await asyncio.gather(
            hostile.flood(4000, 2000), hostile.whisper(200, 100), hostile.knock(120, 60)
        )
        statuses.update(hostile.statuses)
        assert hostile.payloads == 200
        # Nothing that the attack left behind is still under way.
        assert len(asyncio.all_tasks()) <= tasks + 2
        assert call.callee.listener.buffer.waiting < 2 * codec.config.frame_rate

    heard = asyncio.run(hold(codec, 0.1, attack))
    assert sum(statuses.values()) == 120
    # A server that hangs up on a body shows as an error of the client.
    told = {name.rpartition(": ")[2] for name in statuses}
    assert {status for status in told if status.isdecimal()} <= REFUSALS
    # As many frames as the call itself sends; those that a busy machine plays late are its own.
    assert heard["packets_received"] > 0.5 * 2 * codec.config.frame_rate
