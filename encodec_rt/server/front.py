"""A front: a process that serves HTTP and WebSockets for the engine of another process.

    python -m encodec_rt.server.front SOCKET WRITE READ

``front_process.Front`` starts it with three descriptors: the socket beside the rings, over which it
is first told how to serve, and the two rings. It does not import torch. It ends when the other
process does, and ignores signals, which that one handles.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import CodecError, PacketError
from encodec_rt.link import credentials
from encodec_rt.server.host import ServerFacts
from encodec_rt.server.http_service import HttpService, ServerOptions
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.logs import log_as_json
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.records import RecordKind, RingRecord
from encodec_rt.server.remote_host import RemoteHost
from encodec_rt.server.ring import RingReader, RingWriter
from encodec_rt.server.ring_link import RingLink

logger = logging.getLogger(__name__)

LINGER_S = 5
"""How long a front may take to end once the engine's process has."""
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class FrontSettings:
    """How a front is to serve; plain values, which are sent as JSON."""

    facts: ServerFacts
    options: ServerOptions
    host: str
    port: int
    certificate: str | None = None
    key: str | None = None

    def to_bytes(self) -> bytes:
        """Length and JSON; it includes the token, which thus appears in no process list."""
        values = {
            "facts": {**asdict(self.facts), "config": self.facts.config.to_dict()},
            "options": {**asdict(self.options), "origins": sorted(self.options.origins)},
            "host": self.host, "port": self.port,
            "certificate": self.certificate, "key": self.key,
        }  # fmt: skip
        content = json.dumps(values).encode()
        return len(content).to_bytes(_LENGTH_BYTES, "little") + content

    @staticmethod
    def receive(beside: socket.socket) -> FrontSettings:
        """Read what ``to_bytes`` wrote. Raises PacketError if the other process has gone."""
        length = int.from_bytes(_receive(beside, _LENGTH_BYTES), "little")
        values: dict[str, Any] = json.loads(_receive(beside, length))
        facts, options = values.pop("facts"), values.pop("options")
        facts["config"] = EncodecConfig.from_dict(facts["config"])
        facts["limits"] = SessionLimits(**facts["limits"])
        options["limits"] = SessionLimits(**options["limits"])
        options["origins"] = frozenset(options["origins"])
        return FrontSettings(ServerFacts(**facts), ServerOptions(**options), **values)


@dataclass
class Ending:
    """Why a front ends."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    error: CodecError | None = None

    def set(self, error: CodecError | None) -> None:
        """End, for this reason if it is the first."""
        if not self.event.is_set():
            self.error = error
            self.event.set()


async def serve(
    settings: FrontSettings, beside: socket.socket, writer: RingWriter, reader: RingReader
) -> CodecError | None:
    """Serve until the engine's process ends, or sends something unreadable, which is an error."""
    ending = Ending()
    metrics = Metrics(1 / settings.facts.config.frame_rate)
    host = RemoteHost(settings.facts, metrics)
    service = HttpService(host, settings.options, metrics)
    context = None
    if settings.certificate is not None and settings.key is not None:
        context = credentials.server_context(Path(settings.certificate), Path(settings.key))

    def take(record: RingRecord) -> None:
        if record.kind == RecordKind.BROKEN:
            ending.set(PacketError(str(record.fields.get("message"))))
        else:
            host.take(record)

    def connection(accepted: socket.socket) -> None:
        assert service.listener.admission is not None, "connections come after the start"
        with suppress(OSError):
            service.listener.admission.take(accepted, accepted.getpeername()[0])
            return
        accepted.close()

    host.link = RingLink(
        beside, writer, reader, settings.facts.slots,
        take=take, ended=ending.set, connection=connection,
    )  # fmt: skip
    await service.start(settings.host, settings.port, context, listens=False)
    host.link.start()
    running = asyncio.create_task(host.run())
    await ending.event.wait()
    signal.alarm(LINGER_S)
    running.cancel()
    await host.give_up(ending.error)
    await service.listener.close()
    host.link.close()
    return ending.error


def main() -> None:
    """Serve with the descriptors on the command line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log_as_json()
    beside_number, write_number, read_number = map(int, sys.argv[1:4])
    beside = socket.socket(fileno=beside_number)
    writer, reader = RingWriter(write_number), RingReader(read_number)
    for descriptor in (write_number, read_number):
        os.close(descriptor)
    try:
        settings = FrontSettings.receive(beside)
        error = asyncio.run(serve(settings, beside, writer, reader))
    except CodecError as failed:
        error = failed
    if error is not None:
        logger.error("this front ends: %s", error)
    sys.exit(error is not None)


def _receive(beside: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = beside.recv(count - len(found))
        if not piece:
            raise PacketError("the engine's process ended before it said how to serve")
        found += piece
    return bytes(found)


if __name__ == "__main__":
    main()
