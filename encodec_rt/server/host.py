"""What the network side needs from the owner of the engine, in this process or in another.

It does not need torch, so that a front is a small process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.protocol import CloseCode, StreamRequest
from encodec_rt.server.queues import FrameSink, Output, Progress


@dataclass(frozen=True)
class ServerFacts:
    """What a server knows about itself when it starts: plain values."""

    model: str
    weights_sha256: str
    config: EncodecConfig
    encoder_start_frames: int
    decoder_start_frames: int
    slots: int
    bandwidth_kbps: float
    limits: SessionLimits
    """The frames that may wait include those that an exact stream begins with."""

    def check(self, wanted: StreamRequest) -> None:
        """Raise ConfigError for a bandwidth that the server does not offer."""
        books = self.config.codebooks_for(wanted.bandwidth_kbps)
        if books > self.config.codebooks_for(self.bandwidth_kbps):
            raise ConfigError(
                f"bandwidth={wanted.bandwidth_kbps:g}; this server has up to "
                f"{self.bandwidth_kbps:g} kbps"
            )


@dataclass(frozen=True)
class ServerStatus:
    """How a server is now."""

    sessions: int
    """Slots that are taken."""
    is_draining: bool
    idle_s: float
    """How long ago the engine's thread last moved; infinite if it has ended."""


class UnavailableError(Exception):
    """There is no slot; ``reason`` is "full", "draining", or "stalled"."""

    def __init__(self, reason: str) -> None:
        """Refusals are counted by their reason."""
        super().__init__(reason)
        self.reason = reason


class Client(Protocol):
    """A session on the network side, over any transport. Everything runs on the event loop."""

    key: int
    token: str | None
    """The token that resumes it, or None."""
    opened_s: float
    blocked_since_s: float | None
    """Since when a message has been waiting to be read."""
    code: int | None
    """Why it was closed, once it is: a code of WebSockets."""
    ended: asyncio.Event
    """Set when its slot is free and its state is saved."""

    @property
    def heard_s(self) -> float:
        """When anything last arrived from it."""

    def deliver(self, output: Output) -> None:
        """Send ``output``."""

    def send_event(self, name: str, **fields: object) -> None:
        """Send an event, if the transport can carry one."""

    async def close(self, code: int, reason: str) -> None:
        """Hang up."""

    def cut(self) -> None:
        """End the connection at once."""


class Intake(Protocol):
    """What passes a session's frames to the engine."""

    @property
    def pcm(self) -> FrameSink:
        """For audio."""

    @property
    def codes(self) -> FrameSink:
        """For codes."""

    def wake(self) -> None:
        """Say that something waits."""

    def kept(self) -> None:
        """The client has confirmed another snapshot."""


@dataclass(frozen=True)
class Opened:
    """A session that has begun."""

    progress: Progress
    books: int
    """Codebooks of its bandwidth."""


Joined = TypeVar("Joined", bound=Client)
MakeClient = Callable[[int, str, Intake], Joined]
"""(key, the token that resumes it, the intake of its frames) -> a client."""


class SessionHost(Protocol):
    """Owns the slots, and decides who gets one.

    Requests to one in another process may raise UnavailableError if it does not answer.
    """

    facts: ServerFacts

    async def open(
        self, wanted: StreamRequest, resume: str | None, make: MakeClient[Joined]
    ) -> tuple[Joined, Opened]:
        """A session as ``wanted``, on its own slot, or the one that ``resume`` resumes.

        Raises UnavailableError without a slot, and StateError if there is nothing to resume.
        """

    async def end(self, client: Client) -> None:
        """End a session that was opened, and release its slot."""

    async def status(self) -> ServerStatus:
        """How it is now."""

    async def metrics_text(self) -> bytes:
        """The metrics of the whole server in Prometheus' text format."""

    async def make_ticket(self) -> str:
        """A ticket for one stream."""

    async def takes_ticket(self, ticket: str) -> bool:
        """Whether a ticket is valid; marks it as used."""

    async def allows(self, address: str) -> bool:
        """Whether another request from ``address`` may pass, counting the whole server."""


def overdue(
    clients: Collection[Client], limits: SessionLimits, now_s: float
) -> list[tuple[Client, CloseCode, str]]:
    """Clients that do not read, are silent, or have stayed too long: client, code, reason."""
    found: list[tuple[Client, CloseCode, str]] = []
    for client in clients:
        since_s = client.blocked_since_s
        if since_s is not None and now_s - since_s > limits.slow_s:
            found.append((client, CloseCode.SLOW, "too slow"))
        elif now_s - client.heard_s > limits.silent_s:
            found.append((client, CloseCode.SILENT, "nothing was heard"))
        elif now_s - client.opened_s > limits.session_s:
            found.append((client, CloseCode.TOO_LONG, "the time is up"))
    return found


class Supervisor:
    """Periodically closes overdue sessions."""

    def __init__(self, clients: dict[int, Client], limits: SessionLimits) -> None:
        """Watch ``clients``, a live collection."""
        self._clients, self._limits = clients, limits
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(0.25, self._limits.silent_s / 4))
            clients = list(self._clients.values())
            for client, code, reason in overdue(clients, self._limits, loop.time()):
                if code == CloseCode.SLOW:
                    client.code = code
                    client.cut()
                    continue
                task = asyncio.create_task(client.close(code, reason))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
