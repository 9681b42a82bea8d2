"""The sessions of one front as the engine's process sees them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSCloseCode

from encodec_rt.errors import CodecError, PacketError, StateError
from encodec_rt.server.host import Intake, SessionHost, UnavailableError
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import Kind, StreamRequest
from encodec_rt.server.queues import Loss, Output
from encodec_rt.server.records import RecordKind, RingRecord, unpack_item, with_fields
from encodec_rt.server.ring_link import RingLink

logger = logging.getLogger(__name__)

REPORT_S = 0.05
"""How long losses may be collected before they are reported."""


class FrontClient:
    """A Client whose connection belongs to a front."""

    def __init__(
        self, key: int, token: str, intake: Intake, link: RingLink, codebooks: int
    ) -> None:
        """For a bandwidth of ``codebooks`` codebooks."""
        self.key = key
        self.token: str | None = token
        self.intake, self.codebooks = intake, codebooks
        self.opened_s = asyncio.get_running_loop().time()
        self.blocked_since_s: float | None = None
        self.code: int | None = None
        self.ended = asyncio.Event()
        self._link = link
        self._lost: dict[tuple[str, Kind], Loss] = {}
        self._reporting: asyncio.TimerHandle | None = None

    @property
    def heard_s(self) -> float:
        """Now: the front watches for silent clients."""
        return asyncio.get_running_loop().time()

    def take(self, record: RingRecord, config: Any) -> None:
        """A frame, or the end of a clip. Raises PacketError."""
        kind, item = unpack_item(record, config, self.codebooks)
        sink = self.intake.pcm if kind == Kind.PCM else self.intake.codes
        loss = sink.put(item)
        if loss is not None:
            self._lose("in", kind, loss)

    def deliver(self, output: Output) -> None:
        """As ``Client.deliver``; if the ring is full, the newest frame is dropped."""
        if output.data is None:
            self._report()
            self._link.send(
                with_fields(RecordKind.EVENT, self.key, type=output.event, **output.fields)
            )
            return
        record = RingRecord(RecordKind.MESSAGE, self.key, output.index, content=output.data)
        if not self._link.offer(record.pack()):
            self._lose("out", Kind(output.data[0]), Loss(output.index, 1))

    def send_event(self, name: str, **fields: object) -> None:
        """As ``Client.send_event``."""
        self.deliver(Output(self.key, event=name, fields=fields))

    async def close(self, code: int, reason: str) -> None:
        """Tell the front to hang up; it reports when that is done."""
        self._link.send(with_fields(RecordKind.CLOSE, self.key, code=code, reason=reason))

    def cut(self) -> None:
        """As ``Client.cut``."""
        self._link.send(RingRecord(RecordKind.CUT, self.key).pack())

    def _lose(self, where: str, kind: Kind, loss: Loss) -> None:
        """Report a loss soon, together with those that follow it."""
        before = self._lost.get((where, kind))
        if before is not None and before.first + before.count != loss.first:
            self._report()
            before = None
        first, count = (loss.first, 0) if before is None else (before.first, before.count)
        self._lost[where, kind] = Loss(first, count + loss.count)
        if self._reporting is None:
            self._report_soon()

    def _report_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._reporting = loop.call_later(REPORT_S, self._report_in_time)

    def _report_in_time(self) -> None:
        self._reporting = None
        if self._link.is_behind:
            self._report_soon()
        else:
            self._report()

    def _report(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        lost, self._lost = self._lost, {}
        for (where, _), loss in lost.items():
            fields = {"where": where, "first": loss.first, "count": loss.count}
            self._link.send(with_fields(RecordKind.LOST, self.key, **fields))


class FrontClients:
    """All sessions of one front, and the answers to its requests."""

    def __init__(self, host: SessionHost, metrics: Metrics) -> None:
        """``link`` is to be set."""
        self._host, self._metrics = host, metrics
        self.link: RingLink
        self._clients: dict[int, FrontClient] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._fed: FrontClient | None = None
        """A session that got input since the engine was last woken."""
        self._has_gone = False

    def __len__(self) -> int:
        """Sessions that are open."""
        return len(self._clients)

    def take(self, record: RingRecord) -> None:
        """Handle a record from the front. Raises PacketError if it belongs to no single session."""
        if record.kind == RecordKind.ASK:
            self._begin(self._answer(record.key, record.fields))
        elif record.kind == RecordKind.FIGURES:
            self._count(record.fields.get("grown"))
        elif record.kind in (RecordKind.KEPT, *_ITEMS):
            # A session that has ended meanwhile may still have had frames in flight.
            client = self._clients.get(record.key)
            if client is not None:
                self._take(client, record)
        else:
            raise PacketError(f"a record of kind {record.kind.name} from a front")

    def wake(self) -> None:
        """Wake the engine for what has arrived."""
        if self._fed is not None:
            # Once for everything, as there is one engine.
            self._fed.intake.wake()
            self._fed = None

    async def leave(self) -> None:
        """End all sessions of a front that has gone; they can be resumed at another."""
        self._has_gone = True
        clients = list(self._clients.values())
        ending = (self._end(client, WSCloseCode.ABNORMAL_CLOSURE) for client in clients)
        for failed in await asyncio.gather(*ending, return_exceptions=True):
            if failed is not None:
                logger.error("a session of a front that has gone: %r", failed)

    def _take(self, client: FrontClient, record: RingRecord) -> None:
        if record.kind == RecordKind.KEPT:
            client.intake.kept()
            return
        try:
            client.take(record, self._host.facts.config)
        except PacketError as error:
            client.send_event("Error", error="PacketError", message=str(error))
            self._begin(
                client.close(WSCloseCode.INTERNAL_ERROR, "what came of it cannot be read; resume")
            )
            return
        self._fed = client

    def _count(self, grown: object) -> None:
        for each in grown if isinstance(grown, list) else [grown]:
            if not (isinstance(each, list) and len(each) == 3 and isinstance(each[2], float)):
                raise PacketError(f"a figure that cannot be read: {str(each)[:40]}")
            self._metrics.count(str(each[0]), str(each[1]), each[2])

    async def _answer(self, number: int, asked: dict[str, Any]) -> None:
        answers: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, object]]]] = {
            "open": self._open, "end": self._end_asked, "status": self._status,
            "metrics": self._figures, "ticket": self._ticket, "takes": self._takes,
            "allows": self._allows,
        }  # fmt: skip
        try:
            answer = await answers[str(asked.get("what"))](asked)
        except UnavailableError as error:
            answer = {"unavailable": error.reason}
        except (CodecError, LookupError, TypeError, AttributeError) as error:
            answer = {"refused": str(error)}
        self.link.send(with_fields(RecordKind.ANSWER, number, **answer))

    async def _open(self, asked: dict[str, Any]) -> dict[str, object]:
        wanted = StreamRequest.from_query(asked["query"])
        facts, resume = self._host.facts, asked.get("resume")
        facts.check(wanted)
        books = facts.config.codebooks_for(wanted.bandwidth_kbps)
        if not (resume is None or isinstance(resume, str)):
            raise StateError("a session is resumed by its token")

        def make(key: int, token: str, intake: Intake) -> FrontClient:
            return FrontClient(key, token, intake, self.link, books)

        client, opened = await self._host.open(wanted, resume, make)
        self._clients[client.key] = client
        if self._has_gone:
            await self._end(client, WSCloseCode.ABNORMAL_CLOSURE)
        progress = opened.progress
        return {
            "key": client.key, "token": client.token, "books": opened.books,
            "encoded": progress.encoded, "decoded": progress.decoded,
        }  # fmt: skip

    async def _end_asked(self, asked: dict[str, Any]) -> dict[str, object]:
        client, code = self._clients.get(asked["key"]), asked["code"]
        if client is not None:
            await self._end(client, code if isinstance(code, int) else WSCloseCode.ABNORMAL_CLOSURE)
        return {}

    async def _end(self, client: FrontClient, code: int) -> None:
        if self._clients.pop(client.key, None) is None:
            return
        client.code = code
        await self._host.end(client)

    async def _status(self, asked: dict[str, Any]) -> dict[str, object]:
        status = await self._host.status()
        # JSON has no infinity.
        idle_s = status.idle_s if status.idle_s < 1e9 else 1e9
        return {"sessions": status.sessions, "draining": status.is_draining, "idle_s": idle_s}

    async def _figures(self, asked: dict[str, Any]) -> dict[str, object]:
        return {"text": (await self._host.metrics_text()).decode()}

    async def _ticket(self, asked: dict[str, Any]) -> dict[str, object]:
        return {"ticket": await self._host.make_ticket()}

    async def _takes(self, asked: dict[str, Any]) -> dict[str, object]:
        return {"good": await self._host.takes_ticket(str(asked["ticket"]))}

    async def _allows(self, asked: dict[str, Any]) -> dict[str, object]:
        return {"good": await self._host.allows(str(asked["address"]))}

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_ITEMS = (
    RecordKind.PCM,
    RecordKind.CODES,
    RecordKind.LOST_CODES,
    RecordKind.END_PCM,
    RecordKind.END_CODES,
)
