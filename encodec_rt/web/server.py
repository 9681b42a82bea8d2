"""The server of the page: its files, the compiled codec, one model, and a clip to try.

Everything but the page itself is named by the hash of its content and may be kept for ever. The
page runs under a policy that lets it load from here alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.credentials import check_token, is_authorized
from encodec_rt.link.listening import Listener
from encodec_rt.link.signalling import SignallingServer
from encodec_rt.web.meeting import Meeting, RungCall

REQUESTS_PER_S = 10.0
BURST = 60
"""A page makes some twenty requests at once, and one that is loaded again as many."""
LIMITS = ConnectionLimits(connections=32, per_address=12, connection_s=600.0)
"""A browser opens six connections, and 12 MB may take minutes."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
KEPT = "public, max-age=31536000, immutable"
KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".html": "text/html",
    ".bin": "application/octet-stream",
    ".flac": "audio/flac",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    secret: bool = False


class PageServer:
    """Serves the page to browsers; counts what it sent in ``bytes_sent``."""

    def __init__(
        self, model: bytes, *, token: str | None = None, calls: SignallingServer | None = None
    ) -> None:
        """``model`` is the content of a model's file; a ``token`` is asked for before it is given.

        The page calls who answers ``calls``, or, without it, another page. ``calls`` asks for the
        same token, and is closed with the server. Raises LinkError for a token that could be
        guessed.
        """
        if token is not None:
            check_token(token)
        self._token = token
        self._files = _files(model, calls="pages" if calls is None else "listener")
        self._meeting = Meeting(token) if calls is None else None
        self._calls = calls or SignallingServer(self._ring, token=token)
        self._rate = RateLimit(REQUESTS_PER_S, BURST)
        self._listener = Listener()
        self.bytes_sent = 0

    @property
    def waiting(self) -> bool:
        """Whether a page waits for a call."""
        return self._meeting is not None and self._meeting.waiting

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; the port, which is chosen by the system for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(
            client_max_size=self._calls.limits.body_bytes, middlewares=[self._check]
        )
        if self._meeting is not None:
            application.router.add_get("/meet", self._meeting.join)
        self._calls.add_to(application)
        application.router.add_get("/{path:.*}", self._get)
        return await self._listener.open(
            application, (host, port), LIMITS, context, has_token=self._token is not None
        )

    async def close(self) -> None:
        """Stop serving, and hang up."""
        if self._meeting is not None:
            await self._meeting.close()
        await self._calls.close()
        await self._listener.close()

    def _ring(self) -> RungCall:
        assert self._meeting is not None
        return RungCall(self._meeting)

    async def _get(self, request: web.Request) -> web.Response:
        file = self._files.get(request.path)
        if file is None:
            raise web.HTTPNotFound
        # By fetch alone: a browser cannot send a token when it goes to an address.
        given, token = request.headers.get("Authorization"), self._token
        if file.secret and token is not None and not is_authorized(given, token):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        self.bytes_sent += len(file.content)
        kept = "no-cache" if request.path == "/" else KEPT
        return web.Response(
            body=file.content, content_type=file.kind, charset=_charset(file.kind),
            headers={"Cache-Control": kept},
        )  # fmt: skip

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what may not come further, cheapest reason first; put headers on answers."""
        try:
            if not self._rate.allows(request.remote or "", asyncio.get_running_loop().time()):
                raise web.HTTPTooManyRequests
            if (hosts := self._listener.hosts) and request.host not in hosts:
                raise web.HTTPForbidden
            origin = request.headers.get("Origin")
            if origin is not None and origin != f"{request.scheme}://{request.host}":
                raise web.HTTPForbidden
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response


def _files(model: bytes, *, calls: str) -> dict[str, _File]:
    """All files by their paths; the page names the others, and whom it ``calls``."""
    root = Path(str(resources.files("encodec_rt")))
    parts = sorted((root / "web" / "page").glob("*.*"))
    parts.append(root / "web" / "codec" / "codec.wasm")
    contents = {part.name: part.read_bytes() for part in parts}
    page = contents.pop("index.html").decode()
    clip = (root / "assets" / "speech_en.flac").read_bytes()
    folder = "/app-" + _digest(*(name.encode() + contents[name] for name in sorted(contents)))
    places = {
        "FOLDER": folder,
        "MODEL": f"/model-{_digest(model)}.bin",
        "CALLS": calls,
        "CLIP": f"/clip-{_digest(clip)}.flac",
    }
    for name, place in places.items():
        page = page.replace(f"@{name}@", place)
    files = {
        f"{folder}/{name}": _File(content, KINDS[Path(name).suffix])
        for name, content in contents.items()
    }
    files[places["MODEL"]] = _File(model, KINDS[".bin"], secret=True)
    files[places["CLIP"]] = _File(clip, KINDS[".flac"])
    files["/"] = _File(page.encode(), KINDS[".html"])
    return files


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _charset(kind: str) -> str | None:
    return "utf-8" if kind.startswith("text/") else None
