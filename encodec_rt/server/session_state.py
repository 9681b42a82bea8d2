"""A session as bytes: what it asked for, how far it has got, and its slot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from encodec_rt.errors import PacketError
from encodec_rt.server.protocol import MAX_INDEX, StreamRequest
from encodec_rt.server.queues import Progress
from encodec_rt.server.slot_stream import SlotStream
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.slot_snapshot import SlotSnapshot

_MAGIC = b"EnCdSess"
VERSION = 1


@dataclass(frozen=True, eq=False)
class SessionState:
    """A session frozen between two passes."""

    request: StreamRequest
    progress: Progress
    slot: SlotSnapshot

    @staticmethod
    def of(stream: SlotStream, engine: Engine) -> SessionState:
        """The present state of ``stream``, of which nothing may be in progress."""
        assert stream.is_quiet, "a session is frozen when nothing of it is in the making"
        progress = Progress(**asdict(stream.progress))
        return SessionState(stream.request, progress, engine.snapshot(stream.slot))

    def is_for(self, request: StreamRequest) -> bool:
        """Whether the client of ``request`` can continue from here and has everything before."""
        mine = self.request
        return (
            (mine.mode, mine.bandwidth_kbps, mine.start)
            == (request.mode, request.bandwidth_kbps, request.start)
            and self.progress.encoded <= request.frame
            and self.progress.decoded <= request.decoded
        )

    def to_bytes(self) -> bytes:
        """Magic, version, length of the header, JSON header, and the slot's snapshot."""
        content = {"request": asdict(self.request), "progress": asdict(self.progress)}
        header = json.dumps(content).encode()
        sizes = VERSION.to_bytes(4, "little") + len(header).to_bytes(4, "little")
        return _MAGIC + sizes + header + self.slot.to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> SessionState:
        """A snapshot from ``to_bytes``. Raises PacketError for anything else."""
        if data[:8] != _MAGIC or data[8:12] != VERSION.to_bytes(4, "little"):
            raise PacketError(f"{len(data)} bytes that are not a session of version {VERSION}")
        end = 16 + int.from_bytes(data[12:16], "little")
        try:
            content = json.loads(data[16:end])
            request = StreamRequest(**content["request"])
            progress = Progress(**content["progress"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise PacketError("a session whose header cannot be read") from None
        for name, default in asdict(Progress()).items():
            value = getattr(progress, name)
            if type(value) is not type(default) or not 0 <= value <= MAX_INDEX:
                raise PacketError(f"a session with {name}={value!r}")
        return SessionState(request, progress, SlotSnapshot.from_bytes(data[end:]))
