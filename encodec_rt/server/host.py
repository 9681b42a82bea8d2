"""What the network's side asks of whoever has the engine, in this process or in another one.

Needs no torch, so that a front is a small process.
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
    """What a server knows of itself from its start on: plain values."""

    model: str
    weights_sha256: str
    config: EncodecConfig
    encoder_start_frames: int
    decoder_start_frames: int
    slots: int
    bandwidth_kbps: float
    limits: SessionLimits
    """With what an exact stream begins with among the frames that may wait."""

    def check(self, wanted: StreamRequest) -> None:
        """Raise ConfigError for a bandwidth that is not served."""
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
    """How long ago the engine's thread last moved; endless where it has ended."""


class UnavailableError(Exception):
    """There is no slot; ``reason`` is "full", "draining", or "stalled"."""

    def __init__(self, reason: str) -> None:
        """For a refusal that is counted by its reason."""
        super().__init__(reason)
        self.reason = reason


class Client(Protocol):
    """A session on the network's side, whatever carries it. Everything is the event loop's."""

    key: int
    token: str | None
    """What resumes it, or None where nothing does."""
    opened_s: float
    blocked_since_s: float | None
    """Since when a message waits for being taken."""
    code: int | None
    """Why it was closed, once it is: a code of WebSockets."""
    ended: asyncio.Event
    """Set when its slot is free and its state is kept."""

    @property
    def heard_s(self) -> float:
        """When anything came from it."""

    def deliver(self, output: Output) -> None:
        """Send ``output``."""

    def send_event(self, name: str, **fields: object) -> None:
        """Send an event, where there is a way for one."""

    async def close(self, code: int, reason: str) -> None:
        """Hang up."""

    def cut(self) -> None:
        """End the connection at once."""


class Intake(Protocol):
    """What takes a session's frames to the engine."""

    @property
    def pcm(self) -> FrameSink:
        """For audio."""

    @property
    def codes(self) -> FrameSink:
        """For codes."""

    def wake(self) -> None:
        """Say that something waits."""

    def kept(self) -> None:
        """The client has heard of one more snapshot."""


@dataclass(frozen=True)
class Opened:
    """A session that has begun."""

    progress: Progress
    books: int
    """Codebooks of its bandwidth."""


Joined = TypeVar("Joined", bound=Client)
MakeClient = Callable[[int, str, Intake], Joined]
"""(key, the token that resumes it, what takes its frames) -> a client."""


class SessionHost(Protocol):
    """Has the slots, and decides who gets one.

    All that is asked of one in another process may raise UnavailableError: it does not answer.
    """

    facts: ServerFacts

    async def open(
        self, wanted: StreamRequest, resume: str | None, make: MakeClient[Joined]
    ) -> tuple[Joined, Opened]:
        """A session as ``wanted``, on a slot of its own, or the one that ``resume`` resumes.

        Raises UnavailableError without a slot, and StateError where there is nothing to resume.
        """

    async def end(self, client: Client) -> None:
        """End a session that was opened, and give its slot back."""

    async def status(self) -> ServerStatus:
        """How it is now."""

    async def metrics_text(self) -> bytes:
        """The figures of the whole server in Prometheus' text format."""

    async def make_ticket(self) -> str:
        """A ticket for one stream."""

    async def takes_ticket(self, ticket: str) -> bool:
        """Whether a ticket is good; it is used now."""

    async def allows(self, address: str) -> bool:
        """Whether one more request from ``address`` may pass, of all that came to this server."""


def overdue(
    clients: Collection[Client], limits: SessionLimits, now_s: float
) -> list[tuple[Client, CloseCode, str]]:
    """Who does not read, is silent, or has been here too long: client, code, reason."""
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
    """Closes, once in a while, the sessions that are overdue."""

    def __init__(self, clients: dict[int, Client], limits: SessionLimits) -> None:
        """Watch ``clients``, which is what it is at any time."""
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
