"""A server as a Ray actor: placed and restarted by Ray; the placer asks it for its status."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from encodec_rt.link.credentials import urls
from encodec_rt.server.settings import SWITCH_S, ServeSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecSettings:
    """The codec of a worker."""

    model: str
    device: str = "cpu"
    backend: str = "auto"


@dataclass(frozen=True)
class WorkerStatus:
    """What a placer knows about a worker."""

    url: str
    fingerprint: str | None
    pid: int
    slots: int
    sessions: int
    draining: bool


class Worker:
    """One server on any free port. It starts when first asked for its status, so that a restarted
    one serves again by itself.
    """

    def __init__(self, codec: CodecSettings, settings: ServeSettings, address: str | None) -> None:
        """``address`` is this machine's; None means the one that Ray knows."""
        self._codec, self._address = codec, address
        self._settings = replace(settings, port=0)
        self._starting = asyncio.Lock()
        self._url = ""
        self._fingerprint: str | None = None

    async def status(self) -> dict[str, object]:
        """A WorkerStatus, as plain values. Raises what starting the server raises."""
        async with self._starting:
            if not self._url:
                await self._start()
        server = self._server
        if not server.is_alive and not server.is_draining:
            logger.error("the engine's thread has ended, and so does this process")
            # Ray restarts only actors that end like this.
            os._exit(1)
        status = WorkerStatus(
            self._url,
            self._fingerprint,
            os.getpid(),
            server.sessions.slots,
            server.sessions.count,
            server.is_draining,
        )
        return asdict(status)

    async def drain(self) -> None:
        """Let the sessions end in time, and save the rest."""
        if self._url:
            await self._server.drain()

    async def _start(self) -> None:
        import torch

        from encodec_rt.streaming.codec import Codec

        sys.setswitchinterval(SWITCH_S)
        torch.set_num_threads(1)
        host = self._address or _node_address()
        settings = replace(self._settings, host=host)
        codec = Codec.load(
            self._codec.model, device=self._codec.device, backend=self._codec.backend
        )
        access = settings.access()
        self._server = settings.make_server(codec, access)
        port = await self._server.start(host, 0, access.context)
        self._fingerprint = access.fingerprint
        # The brackets of an IPv6 address belong to the URL.
        self._url = urls(access.scheme, host, port)[0]


def _node_address() -> str:
    import ray

    util: Any = ray.util
    return str(util.get_node_ip_address())
