"""What carries a call: a transport, and after a broken path the next transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from encodec_rt.errors import LinkError
from encodec_rt.voice.token_bucket import TokenBucket
from encodec_rt.voice.transport import Received, Report, Transport

MAX_PACKETS_PER_S = 400
"""More than twice what a sender of one frame per packet, each doubled, would send."""
FAREWELL_S = 1.0
"""How long a replaced transport is kept, so that its end is not taken for a hang-up."""


class Line:
    """The transports of one call, one after the other. To be made inside the event loop."""

    def __init__(
        self,
        transport: Transport,
        on_packet: Callable[[Received], None],
        on_estimate: Callable[[float], None],
        on_renewed: Callable[[], None],
    ) -> None:
        """``on_renewed`` is called before the first packet of a transport that follows another."""
        self.transport = transport
        self.renewals = 0
        self.refused = 0
        """Packets beyond ``MAX_PACKETS_PER_S``, which are not passed on."""
        self._allowance = TokenBucket(MAX_PACKETS_PER_S, MAX_PACKETS_PER_S)
        self._on_packet, self._on_estimate = on_packet, on_estimate
        self._on_renewed = on_renewed
        self._pending: Transport | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._closing = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._latest: Report | None = None
        self._sent_before = (0, 0, 0)
        self._open(transport)

    @property
    def sent(self) -> tuple[int, int, int]:
        """Packets and bytes sent over all transports, and packets dropped before."""
        latest, before = self._latest, self._sent_before
        now = (0, 0) if latest is None else (latest.packets_sent, latest.bytes_sent)
        return before[0] + now[0], before[1] + now[1], before[2] + self.transport.dropped

    def begin_with(self, transport: Transport) -> None:
        """Use ``transport`` instead of the first one, which has carried nothing yet."""
        before, self.transport = self.transport, transport
        self._open(transport)
        self._leave(before, 0.0)

    async def connect(self, seconds: float) -> None:
        """Wait until packets can pass. Raises LinkError if it takes longer or fails."""
        try:
            connected = await asyncio.wait_for(self.transport.wait_connected(), seconds)
        except asyncio.TimeoutError:
            reason = f"took more than {seconds:g} s"
        else:
            if connected:
                return
            reason = "failed"
        raise LinkError(
            f"connecting to the other side {reason}; is UDP between the two machines open?"
        )

    def propose(self, transport: Transport) -> None:
        """Listen on ``transport`` too: its first packet, or ``adopt``, makes it the line."""
        if self._pending is not None:
            self._leave(self._pending, 0.0)
        self._pending = transport
        self._open(transport)

    def adopt(self, transport: Transport) -> bool:
        """Continue over ``transport``; False if it is not the one proposed last."""
        if transport is self.transport:
            return True
        if transport is not self._pending:
            return False
        self._sent_before, self._latest = self.sent, None
        before, self.transport, self._pending = self.transport, transport, None
        self.renewals += 1
        self._on_renewed()
        self._changed.set()
        self._changed = asyncio.Event()
        self._leave(before, FAREWELL_S)
        return True

    async def follow(self, transport: Transport, seconds: float) -> bool:
        """Adopt a proposed transport if it connects within ``seconds``, or drop it; which it
        was."""
        try:
            connected = await asyncio.wait_for(transport.wait_connected(), seconds)
        except asyncio.TimeoutError:
            connected = False
        if connected and self.adopt(transport):
            return True
        self.drop(transport)
        return False

    def drop(self, transport: Transport) -> None:
        """Give up a proposed transport that failed."""
        if transport is self._pending:
            self._pending = None
            self._leave(transport, 0.0)

    async def wait_ended(self, *, patient: bool) -> None:
        """Wait until one side hangs up; or, unless ``patient``, until the path has failed."""
        while not self._closed:
            transport, changed = self.transport, self._changed
            await transport.wait_ended()
            if transport is not self.transport:
                continue
            if self._closed or not patient or not (transport.failed or self._pending):
                return
            await changed.wait()

    async def report(self) -> Report | None:
        """What the other side last reported of this transport."""
        transport = self.transport
        report = await transport.report()
        if transport is self.transport:
            self._latest = report or self._latest
        return report

    async def close(self) -> None:
        """Hang up. Repeating this is harmless."""
        self._closed = True
        self._closing.set()
        # Not cancelled: a transport whose closing is interrupted leaves its sockets open.
        if self._leaving:
            await asyncio.wait(set(self._leaving))
        if self._pending is not None:
            await self._pending.close()
        await self.transport.close()

    def _open(self, transport: Transport) -> None:
        transport.open(partial(self._receive, transport), partial(self._estimate, transport))

    def _receive(self, transport: Transport, packet: Received) -> None:
        if transport is self._pending:
            self.adopt(transport)
        if transport is not self.transport:
            return
        if self._allowance.allows(asyncio.get_running_loop().time()):
            self._on_packet(packet)
        else:
            self.refused += 1

    def _estimate(self, transport: Transport, bitrate_bps: float) -> None:
        if transport is self.transport:
            self._on_estimate(bitrate_bps)

    def _leave(self, transport: Transport, after_s: float) -> None:
        async def leave() -> None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), after_s)
            await transport.close()

        task = asyncio.ensure_future(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
