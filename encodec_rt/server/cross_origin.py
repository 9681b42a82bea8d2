"""CORS preflight: what a browser asks before a page of another origin may post calls or tickets."""

from __future__ import annotations

from collections.abc import Container

from aiohttp import web

_FROM = "Origin"
_KEPT_S = "600"


class CrossOrigin:
    """Tells browsers which pages may read the answers (Fetch standard, 3.3: CORS)."""

    def __init__(self, origins: Container[str]) -> None:
        """``origins`` are the pages that may."""
        self._origins = origins

    def add_to(self, application: web.Application) -> None:
        """Answer questions on any address of ``application``, and mark all answers."""
        application.router.add_route("OPTIONS", "/{path:.*}", self._preflight)
        application.on_response_prepare.append(self._mark)

    async def _preflight(self, request: web.Request) -> web.Response:
        headers = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": _KEPT_S,
            # RFC 9725, 4.2: what may be posted.
            "Accept-Post": "application/sdp",
        }
        return web.Response(status=204, headers=headers)

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(_FROM)
        if origin is not None and origin in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "Location, Retry-After"
            response.headers["Vary"] = _FROM
