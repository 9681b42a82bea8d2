"""What carries a call is closed whole, whenever the call ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from encodec_rt.voice import line as line_module
from encodec_rt.voice.line import Line
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report


class SlowTransport:
    """One that takes its time to close, and must not be cut short in it."""

    dropped = 0
    failed = False

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.closed = False

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        pass

    async def wait_connected(self) -> bool:
        return True

    async def wait_ended(self) -> None:
        await self.closing.wait()

    def send(self, packet: Outgoing) -> None:
        pass

    async def report(self) -> Report | None:
        return None

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.closed = True


@pytest.mark.parametrize("farewell_s", [0.0, 3600.0])
def test_a_transport_that_another_replaced_is_closed_whole_when_the_call_ends(
    farewell_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_module, "FAREWELL_S", farewell_s)

    async def run() -> None:
        first, second = SlowTransport(), SlowTransport()
        line = Line(first, lambda _: None, lambda _: None, lambda: None)
        line.propose(second)
        assert line.adopt(second)
        if not farewell_s:
            await asyncio.wait_for(first.closing.wait(), 60)
        ending = asyncio.create_task(line.close())
        await asyncio.wait_for(first.closing.wait(), 60)
        first.may_close.set()
        second.may_close.set()
        await asyncio.wait_for(ending, 60)
        assert first.closed
        assert second.closed

    asyncio.run(run())
