"""The engine's process as a front sees it: asked through one ring, answering through the other."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from aiohttp import WSCloseCode

from encodec_rt.errors import CodecError, PacketError, StateError
from encodec_rt.server.connection import Connection
from encodec_rt.server.host import (
    Client,
    Joined,
    MakeClient,
    Opened,
    ServerFacts,
    ServerStatus,
    Supervisor,
    UnavailableError,
)
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import Kind, StreamRequest
from encodec_rt.server.queues import ClipEnd, Loss, Output, Progress, WaitingFrame
from encodec_rt.server.records import RecordKind, RingRecord, pack_item, with_fields
from encodec_rt.server.ring_link import RingLink

logger = logging.getLogger(__name__)

FIGURES_EVERY_S = 0.25
ANSWER_S = 10.0


class RingSink:
    """Passes one direction of a session's frames to the ring; those that do not fit are dropped."""

    def __init__(self, key: int, kind: Kind, link: RingLink) -> None:
        """For the session ``key``."""
        self._key, self._kind, self._link = key, kind, link

    def put(self, item: WaitingFrame | ClipEnd) -> Loss | None:
        """As ``FrameSink.put``; the end of a clip is not dropped."""
        record = pack_item(self._key, self._kind, item)
        if isinstance(item, ClipEnd):
            self._link.send(record)
        elif not self._link.offer(record):
            return Loss(item.index, 1)
        return None


class RingIntake:
    """Passes a session's frames to the engine's process."""

    def __init__(self, key: int, link: RingLink) -> None:
        """For the session ``key``."""
        self.pcm, self.codes = RingSink(key, Kind.PCM, link), RingSink(key, Kind.CODES, link)
        self._key, self._link = key, link

    def wake(self) -> None:
        """Does nothing: a record wakes its reader."""

    def kept(self) -> None:
        """As ``Intake.kept``."""
        self._link.send(RingRecord(RecordKind.KEPT, self._key).pack())


class RemoteHost:
    """A SessionHost in another process. Everything here runs on the event loop."""

    def __init__(self, facts: ServerFacts, metrics: Metrics) -> None:
        """``metrics`` are the front's own, which it passes on; set ``link`` afterwards."""
        self.facts, self._metrics = facts, metrics
        self.link: RingLink
        self._clients: dict[int, Client] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._told: dict[tuple[str, str], float] = {}
        self._has_ended = False
        self._closing: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """Report that it serves, watch the sessions and pass on metrics, until cancelled."""
        watching = asyncio.create_task(Supervisor(self._clients, self.facts.limits).run())
        try:
            while True:
                if not self.link.is_behind:
                    self.link.send(RingRecord(RecordKind.READY).pack())
                    self._tell_figures()
                await asyncio.sleep(FIGURES_EVERY_S)
        finally:
            watching.cancel()

    async def open(
        self, wanted: StreamRequest, resume: str | None, make: MakeClient[Joined]
    ) -> tuple[Joined, Opened]:
        """As ``SessionHost.open``."""
        # Exactly, not as a URL shows it.
        query = wanted.to_query() | {"bandwidth": repr(wanted.bandwidth_kbps)}
        asking = self._ask("open", query=query, resume=resume)
        try:
            answer = await asyncio.wait_for(asyncio.shield(asking), ANSWER_S)
        except (asyncio.TimeoutError, asyncio.CancelledError) as error:
            # It may still be opened, but then nobody is there.
            asking.add_done_callback(self._end_unwanted)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise UnavailableError("stalled") from None
        key, books = _whole(answer, "key"), _whole(answer, "books")
        progress = Progress(_whole(answer, "encoded"), _whole(answer, "decoded"))
        client = make(key, str(answer.get("token")), RingIntake(key, self.link))
        self._clients[key] = client
        return client, Opened(progress, books)

    async def end(self, client: Client) -> None:
        """As ``SessionHost.end``."""
        del self._clients[client.key]
        self._tell_figures()
        try:
            await self._ask("end", key=client.key, code=client.code)
        except UnavailableError:
            # The engine's process ends the sessions of a front that has gone.
            return
        finally:
            client.ended.set()

    async def status(self) -> ServerStatus:
        """As ``SessionHost.status``. Raises UnavailableError."""
        answer = await self._answer("status")
        idle_s = answer.get("idle_s")
        return ServerStatus(
            _whole(answer, "sessions"),
            answer.get("draining") is True,
            idle_s if isinstance(idle_s, float) else float("inf"),
        )

    async def metrics_text(self) -> bytes:
        """As ``SessionHost.metrics_text``."""
        self._tell_figures()
        return str((await self._answer("metrics")).get("text")).encode()

    async def make_ticket(self) -> str:
        """As ``SessionHost.make_ticket``."""
        return str((await self._answer("ticket")).get("ticket"))

    async def takes_ticket(self, ticket: str) -> bool:
        """As ``SessionHost.takes_ticket``."""
        return (await self._answer("takes", ticket=ticket[:200])).get("good") is True

    async def allows(self, address: str) -> bool:
        """As ``SessionHost.allows``."""
        return (await self._answer("allows", address=address)).get("good") is True

    def take(self, record: RingRecord) -> None:
        """A record from the engine's process. Raises PacketError."""
        if record.kind == RecordKind.ANSWER:
            self._answered(record.key, record.fields)
            return
        client = self._clients.get(record.key)
        if not isinstance(client, Connection):
            return
        if record.kind == RecordKind.MESSAGE:
            client.deliver(Output(record.key, record.content, index=record.frame))
        elif record.kind == RecordKind.EVENT:
            fields = record.fields
            client.send_event(str(fields.pop("type", "")), **fields)
        elif record.kind == RecordKind.LOST:
            fields = record.fields
            lost = Loss(_whole(fields, "first"), _whole(fields, "count"))
            client.lose("in" if fields.get("where") == "in" else "out", lost)
        elif record.kind == RecordKind.CLOSE:
            fields = record.fields
            self._close(client, _whole(fields, "code"), str(fields.get("reason")))
        elif record.kind == RecordKind.CUT:
            client.cut()
        else:
            raise PacketError(f"a record of kind {record.kind.name} for a front")

    async def give_up(self, error: CodecError | None) -> None:
        """End all sessions, telling clients the ``error``; they may resume elsewhere."""
        self._has_ended = True
        for asking in self._asked.values():
            if not asking.done():
                asking.set_exception(UnavailableError("draining"))
        clients = list(self._clients.values())
        for client in clients:
            if error is None:
                client.cut()
            else:
                client.send_event("Error", error=type(error).__name__, message=str(error))
        if error is not None:
            # Let events be sent before the close.
            await asyncio.sleep(0.05)
            closing = (
                client.close(WSCloseCode.INTERNAL_ERROR, "this front is broken; resume")
                for client in clients
            )
            await asyncio.gather(*closing, return_exceptions=True)

    def _close(self, client: Client, code: int, reason: str) -> None:
        task = asyncio.ensure_future(client.close(code, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _ask(self, what: str, **fields: object) -> asyncio.Future[dict[str, Any]]:
        """Ask the engine's process. Awaiting the answer raises UnavailableError and StateError."""
        number = next(self._numbers)
        asking: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._has_ended:
            asking.set_exception(UnavailableError("draining"))
            return asking
        self._asked[number] = asking
        asking.add_done_callback(lambda _: self._asked.pop(number, None))
        self.link.send(with_fields(RecordKind.ASK, number, what=what, **fields))
        return asking

    async def _answer(self, what: str, **fields: object) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(self._ask(what, **fields), ANSWER_S)
        except asyncio.TimeoutError:
            raise UnavailableError("stalled") from None

    def _answered(self, number: int, answer: dict[str, Any]) -> None:
        asking = self._asked.get(number)
        if asking is None or asking.done():
            return
        if "unavailable" in answer:
            asking.set_exception(UnavailableError(str(answer["unavailable"])))
        elif "refused" in answer:
            asking.set_exception(StateError(str(answer["refused"])))
        else:
            asking.set_result(answer)

    def _end_unwanted(self, asking: asyncio.Future[dict[str, Any]]) -> None:
        if not asking.cancelled() and asking.exception() is None:
            key = _whole(asking.result(), "key")
            unwanted = self._ask("end", key=key, code=WSCloseCode.ABNORMAL_CLOSURE)
            unwanted.add_done_callback(lambda each: each.cancelled() or each.exception())

    def _tell_figures(self) -> None:
        """Pass on by how much the front's own metrics have grown."""
        grown = []
        for name, label, total in self._metrics.counted():
            more = total - self._told.get((name, label), 0.0)
            if more:
                grown.append([name, label, more])
                self._told[name, label] = total
        if grown:
            self.link.send(with_fields(RecordKind.FIGURES, grown=grown))


def _whole(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PacketError(f"a record with {name}={value!r}")
    return value
