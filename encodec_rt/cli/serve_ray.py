"""encodec-rt serve --ray: servers on a Ray cluster, and one address that knows which has room."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from encodec_rt.cli.console import say
from encodec_rt.errors import StateError

if TYPE_CHECKING:
    from encodec_rt.cli.options import CodecOptions
    from encodec_rt.server.placer import Placer
    from encodec_rt.server.settings import ServeSettings


async def serve_on_ray(
    options: CodecOptions, settings: ServeSettings, address: str, workers: int
) -> None:
    """Run ``workers`` servers on the cluster at ``address``, and place sessions, until told to end.

    Raises BackendUnavailable without such a cluster, and LinkError and ConfigError.
    """
    from encodec_rt.link.credentials import is_loopback, urls
    from encodec_rt.ray_cluster import start_ray
    from encodec_rt.server.cluster import start_workers
    from encodec_rt.server.placer import Placer
    from encodec_rt.server.worker import CodecSettings

    access = settings.access()
    if access.fingerprint is not None:
        say(f"the certificate's fingerprint is {access.fingerprint}")
    codec = CodecSettings(options.model, options.device, options.backend)
    loopback = is_loopback(settings.host)
    ray = start_ray(address, "a server on Ray", niceness=0, loopback=loopback)
    try:
        handles = start_workers(ray, address, workers, codec, settings, say)
        placer = Placer(handles, access.token)
        ending = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
        bound = await placer.start(settings.host, settings.port, access.context)
        try:
            ended = asyncio.create_task(ending.wait())
            if await _ready_before(ended, placer):
                at = " and ".join(urls(access.scheme, settings.host, bound))
                say(f"placing sessions on {workers} workers from {at}; Ctrl-C ends")
                await ended
                await placer.drain()
        finally:
            await placer.close()
    finally:
        ray.shutdown()


async def _ready_before(ended: asyncio.Task[Any], placer: Placer) -> bool:
    """Whether the workers serve before the command is told to end. Raises StateError."""
    from encodec_rt.server.cluster import START_S

    ready = asyncio.create_task(placer.wait_ready())
    waiting = {ended, ready}
    done, _ = await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if not done:
        raise StateError(f"the workers did not start within {START_S:g} s")
    if ready in done:
        ready.result()
    return ready in done
