"""Placing sessions: one address that knows all workers and names the one with the most room.

Media never passes here. A worker reserves the slot itself, so out-of-date information here does no
harm: the worker refuses the client, which asks again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.errors import StateError
from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.listening import Listener
from encodec_rt.server.access import Access
from encodec_rt.server.protocol import PLACE_PATH
from encodec_rt.server.worker import WorkerStatus

logger = logging.getLogger(__name__)

ASK_EVERY_S = 0.5
ANSWER_S = 60.0
"""How long a worker may take to report its status: one that starts loads a model first."""
STALE_S = 3.0
"""A worker that has said nothing for this long gets no clients."""
TRIES = 3
"""A worker that has failed this often before ever serving counts as unable to start."""
REQUESTS_PER_S, BURST = 50.0, 400
"""Per address, on average and in a burst."""


class WorkerHandle(Protocol):
    """A worker, wherever it runs."""

    async def status(self) -> WorkerStatus:
        """Its status. Raises an exception if that cannot be found out."""

    async def drain(self) -> None:
        """Let its sessions end."""


class _Known:
    """A worker and its last known status."""

    def __init__(self, handle: WorkerHandle) -> None:
        self.handle = handle
        self.status: WorkerStatus | None = None
        self.heard_s = float("-inf")
        self.restarts = self.failures = 0
        self.trouble = ""
        """The message of its last failure."""

    @property
    def free(self) -> int:
        """Free slots as far as known; 0 for a worker that takes nobody."""
        status = self.status
        if status is None or status.draining or time.monotonic() - self.heard_s > STALE_S:
            return 0
        return status.slots - status.sessions


class Placer:
    """Answers requests for a place with the address of a worker."""

    def __init__(self, handles: Sequence[WorkerHandle], token: str | None) -> None:
        """``token`` is shared by clients and workers; None on loopback."""
        self._workers = [_Known(handle) for handle in handles]
        self._access = Access(token, time.monotonic)
        self._has_token = token is not None
        self._rate = RateLimit(REQUESTS_PER_S, BURST)
        self._listener = Listener()
        self._tasks: list[asyncio.Task[None]] = []
        self.is_draining = self._closed = False

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen, and ask the workers from now on; the port, which the system chooses for 0.

        Raises LinkError as ``Listener.open`` does.
        """
        application = web.Application(client_max_size=1, middlewares=[self._check])
        application.router.add_get(PLACE_PATH, self._place)
        application.router.add_get("/v1/workers", self._list)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        limits = ConnectionLimits(connections=256, per_address=256, connection_s=15.0)
        bound = await self._listener.open(
            application, (host, port), limits, context, has_token=self._has_token
        )
        self._tasks = [asyncio.create_task(self._ask(worker)) for worker in self._workers]
        return bound

    async def wait_ready(self) -> None:
        """Wait until every worker has reported its status. Raises StateError if one cannot."""
        while any(worker.status is None for worker in self._workers):
            for worker in self._workers:
                if worker.failures >= TRIES and worker.heard_s < 0:
                    raise StateError(f"a worker does not start: {worker.trouble}")
            await asyncio.sleep(0.05)

    async def drain(self) -> None:
        """Place no more sessions, and let the workers' sessions end."""
        self.is_draining = True
        drains = (worker.handle.drain() for worker in self._workers)
        for result in await asyncio.gather(*drains, return_exceptions=True):
            if isinstance(result, Exception):
                logger.warning("a worker could not be drained: %s", result)

    async def close(self) -> None:
        """Stop asking and listening."""
        # Before Python 3.12 wait_for can swallow a cancellation, so one is not always enough.
        self.is_draining = self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.close()

    async def _ask(self, worker: _Known) -> None:
        while not self._closed:
            try:
                status = await asyncio.wait_for(worker.handle.status(), ANSWER_S)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001
                # Whatever happened to it, it gets no clients until it answers again.
                worker.failures += 1
                worker.trouble = str(error).strip().rpartition("\n")[2] or type(error).__name__
                if worker.status is not None:
                    logger.warning("a worker is gone: %s", worker.trouble)
                worker.status = None
            else:
                worker.restarts += worker.status is None and worker.heard_s > float("-inf")
                worker.status, worker.heard_s = status, time.monotonic()
            await asyncio.sleep(ASK_EVERY_S)

    async def _place(self, request: web.Request) -> web.Response:
        last = request.query.get("last")
        serving = [each.status for each in self._workers if each.status and not self.is_draining]
        for status in serving:
            # A returning client finds its session, and its slot, where it was.
            if status.url == last and not status.draining:
                return _answer(status)
        best = max(self._workers, key=lambda worker: worker.free)
        if self.is_draining or best.free <= 0 or best.status is None:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "2"})
        # The next client is not sent to the same slot before the worker has been asked again.
        best.status = replace(best.status, sessions=best.status.sessions + 1)
        return _answer(best.status)

    async def _list(self, request: web.Request) -> web.Response:
        workers = [
            {"restarts": each.restarts, **(asdict(each.status) if each.status else {})}
            for each in self._workers
        ]
        return web.json_response({"workers": workers, "draining": self.is_draining})

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.is_draining or all(worker.status is None for worker in self._workers):
            raise web.HTTPServiceUnavailable(text="draining" if self.is_draining else "no worker")
        return web.Response(text="ok")

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise the refusal of a request that is not admitted, cheapest reason first."""
        if not self._rate.allows(request.remote or "", asyncio.get_running_loop().time()):
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"})
        if (hosts := self._listener.hosts) and request.host not in hosts:
            raise web.HTTPForbidden
        if request.headers.get("Origin") is not None:
            raise web.HTTPForbidden
        public = request.path in ("/livez", "/readyz")
        if not public and not self._access.allows(request.headers.get("Authorization")):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)


def _answer(status: WorkerStatus) -> web.Response:
    return web.json_response({"url": status.url, "fingerprint": status.fingerprint})
