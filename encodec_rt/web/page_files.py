"""The page as files: itself, the compiled codec, one model, and a clip to try.

Everything except the page itself is named by the hash of its content and may be cached forever. The
page's content security policy lets it load only from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aiohttp import web

from encodec_rt.link.credentials import is_authorized

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
TRANSFER_S = 600.0
"""How long a browser may take for 12 MB."""


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    secret: bool = False


class PageFiles:
    """The files by their paths; counts what was sent of them in ``bytes_sent``."""

    def __init__(self, model: bytes, *, calls: str, token: str | None) -> None:
        """``model`` is the content of a model's file; a ``token`` is required to get it.

        ``calls`` is whom the page calls: "pages", the "listener" or the "server" it comes from.
        """
        self._files = _files(model, calls=calls)
        self._token = token
        # Beside the scripts, not after them; a browser could not send the token this early.
        place = next(path for path, file in self._files.items() if file.secret)
        preload = {"Link": f"<{place}>; rel=preload; as=fetch; crossorigin"}
        self._page_headers = preload if token is None else {}
        self.bytes_sent = 0

    def __contains__(self, path: str) -> bool:
        """Whether there is such a file."""
        return path in self._files

    async def get(self, request: web.Request) -> web.Response:
        """The answer to a request for one of them; raises the refusal for any other."""
        file = self._files.get(request.path)
        if file is None:
            raise web.HTTPNotFound
        # Only by fetch: a browser cannot send a token when it navigates to a URL.
        given, token = request.headers.get("Authorization"), self._token
        if file.secret and token is not None and not is_authorized(given, token):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        self.bytes_sent += len(file.content)
        more = {"Cache-Control": KEPT}
        if request.path == "/":
            more = {"Cache-Control": "no-cache", **self._page_headers}
        return web.Response(
            body=file.content, content_type=file.kind, charset=_charset(file.kind),
            headers={**HEADERS, **more},
        )  # fmt: skip


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
