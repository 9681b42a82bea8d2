"""A listening web application: beyond loopback with TLS and a token, behind admission limits."""

from __future__ import annotations

import asyncio
import ssl

from aiohttp import web

from encodec_rt.errors import LinkError
from encodec_rt.link.admission import Admission, ConnectionLimits
from encodec_rt.link.credentials import is_loopback


def check_place(host: str, context: ssl.SSLContext | None, *, has_token: bool) -> None:
    """Raise LinkError for an address beyond loopback without both TLS and a token."""
    if not is_loopback(host) and (context is None or not has_token):
        raise LinkError(f"listening on {host} needs TLS and a token; use 127.0.0.1, or give both")


def cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> LinkError:
    """The error for an address at which opening a socket raised ``error``."""
    reason = error.strerror if isinstance(error, OSError) else "not the name of a machine"
    return LinkError(f"cannot listen on {host} port {port}: {reason}")


class Listener:
    """The address of a web application. Once opened, it listens until it is closed."""

    def __init__(self) -> None:
        """Nothing listens yet."""
        self.hosts: frozenset[str] = frozenset()
        """On loopback, the Host headers of requests that are meant for it."""
        self.admission: Admission | None = None
        self._runner: web.AppRunner | None = None

    async def open(
        self,
        application: web.Application,
        place: tuple[str, int],
        limits: ConnectionLimits,
        context: ssl.SSLContext | None,
        *,
        has_token: bool,
        keepalive_s: float = 15.0,
        lingering_s: float = 10.0,
        listens: bool = True,
    ) -> int:
        """Listen at ``place`` (host, port); returns the port, which the system chooses for 0.

        Without ``listens`` all connections come through ``admission.take``; another process accepts
        them at ``place``. Raises LinkError if it cannot, and beyond loopback without both TLS and a
        token.
        """
        host, port = place
        check_place(host, context, has_token=has_token)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=keepalive_s,
            lingering_time=lingering_s,
            shutdown_timeout=1.0,
            handle_signals=False,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self.admission = Admission(self._runner.server, limits, context)
        try:
            bound = await self.admission.open(host, port) if listens else port
        except (OSError, UnicodeError) as error:
            await self.close()
            raise cannot_listen(host, port, error) from error
        if is_loopback(host):
            # Otherwise a page under another name that resolves to this machine could read
            # responses.
            names = ("localhost", "127.0.0.1", "[::1]", host)
            self.hosts = frozenset(f"{name}:{bound}" for name in names)
            if bound == (80 if context is None else 443):
                # The default port is left out.
                self.hosts |= frozenset(names)
        return bound

    def let_stay(self, transport: asyncio.BaseTransport) -> None:
        """Do not time this connection out: its session has its own limits."""
        assert self.admission is not None, "a connection comes after the start"
        self.admission.let_stay(transport)

    async def close(self) -> None:
        """Admit no more connections, and end the open ones."""
        if self.admission is not None:
            await self.admission.close()
        if self._runner is not None:
            await self._runner.cleanup()
