"""A server from plain values, as a command has them and as they are sent to other machines."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from encodec_rt.errors import ConfigError
from encodec_rt.link import credentials
from encodec_rt.server.capacity import measure_capacity
from encodec_rt.server.fronts import FrontedServer
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.service import ServerOptions, StreamServer
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec

SWITCH_S = 0.0005
"""How long one thread may keep the interpreter while another waits; steps make short calls."""


@dataclass(frozen=True)
class Entrance:
    """Token and TLS; all None on loopback without either."""

    token: str | None = None
    context: ssl.SSLContext | None = None
    fingerprint: str | None = None
    """The certificate's fingerprint, with which a client pins it."""
    certificate: tuple[Path, Path] | None = None
    """The files of the certificate and its key, for fronts, which make their own context."""

    @property
    def scheme(self) -> str:
        """How addresses begin."""
        return "http" if self.context is None else "https"


@dataclass(frozen=True)
class ServeSettings:
    """How ``encodec-rt serve`` was asked to run a server."""

    host: str = "127.0.0.1"
    port: int = 8445
    bandwidth_kbps: float = 6.0
    sessions: int = 0
    """0 measures how many fit."""
    calls: int = 0
    fronts: int = 0
    """Processes that carry the WebSockets; 0 has this one carry them."""
    page: bytes | None = None
    """As in ``ServerOptions``."""
    state: Path | None = None
    origins: tuple[str, ...] = ()
    drain_s: float = 30.0
    requests_per_s: float = 50.0
    """Per address; behind a proxy all clients share one."""
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    def access(self) -> Entrance:
        """The token and, beyond loopback, the certificate, which is made if there is none.

        Raises LinkError and ConfigError.
        """
        certificate, key = self.certificate, self.key
        if (certificate is None) != (key is None):
            raise ConfigError("--certificate and --key belong together; give both or neither")
        if credentials.is_loopback(self.host) and certificate is None:
            given = self.token_file
            return Entrance(None if given is None else credentials.read_token(given))
        folder = credentials.state_folder()
        token = credentials.read_token(self.token_file or folder / "link-token")
        if certificate is None or key is None:
            certificate, key = folder / "link-cert.pem", folder / "link-key.pem"
            if not certificate.is_file():
                credentials.make_certificate(certificate, key, [self.host])
        context = credentials.server_context(certificate, key)
        fingerprint = credentials.read_fingerprint(certificate)
        return Entrance(token, context, fingerprint, (certificate, key))

    def slots(self, codec: Codec) -> int:
        """How many sessions there will be. Raises ConfigError if not even one fits."""
        if self.sessions:
            return self.sessions
        if codec.device.type != "cpu":
            raise ConfigError(
                f"--sessions is needed on {codec.device}: only a CPU's capacity is measured"
            )
        fits = measure_capacity(codec, self.bandwidth_kbps)
        if not fits:
            raise ConfigError(
                "this machine, as busy as it is now, cannot serve even one session in time; "
                "--sessions 1 serves one anyway"
            )
        return fits

    def make_server(self, codec: Codec, access: Entrance) -> StreamServer | FrontedServer:
        """A server to be started on ``host`` and ``port``. Raises ConfigError."""
        options = ServerOptions(
            access.token,
            frozenset(self.origins),
            SessionLimits(drain_s=self.drain_s),
            calls=self.calls,
            page=self.page,
            requests_per_s=self.requests_per_s,
            request_burst=int(8 * self.requests_per_s),
        )
        folder = self.state or credentials.state_folder() / "sessions"
        store, slots = SessionStore(folder), self.slots(codec)
        if self.fronts:
            return FrontedServer(
                codec, slots, self.bandwidth_kbps, store, options, self.fronts, access.certificate
            )
        return StreamServer(codec, slots, self.bandwidth_kbps, store, options)
