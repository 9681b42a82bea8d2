"""encodec-rt web: the page on which you hear yourself through the codec."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import say
from encodec_rt.cli.interrupts import run_until_ended
from encodec_rt.cli.link_call import require_link
from encodec_rt.cli.link_options import TokenOption
from encodec_rt.cli.options import ModelOption, PortOption

if TYPE_CHECKING:
    import ssl

    from encodec_rt.web.server import PageServer


def web(
    model: ModelOption = "default",
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: PortOption = 8444,
    token_file: TokenOption = None,
) -> None:
    """Serve a page that runs the codec in the browser.

    On the page you hear yourself or call another browser; 'link call --channel' calls a waiting
    page. On any address but loopback it needs TLS and a token, and the browser has to accept the
    certificate once. Ctrl-C ends it.
    """
    require_link()
    from encodec_rt.link import credentials
    from encodec_rt.web.server import PageServer

    host = host.strip("[]")
    folder = credentials.state_folder()
    token, context = None, None
    if not credentials.is_loopback(host):
        token = credentials.read_token(token_file or folder / "link-token")
        certificate, key = folder / "link-cert.pem", folder / "link-key.pem"
        if not certificate.is_file():
            credentials.make_certificate(certificate, key, [host])
        context = credentials.server_context(certificate, key)
    server = PageServer(model_for_browser(model), token=token)
    run_until_ended(_serve(server, host, port, context, token))


async def _serve(
    server: PageServer, host: str, port: int, context: ssl.SSLContext | None, token: str | None
) -> None:
    from encodec_rt.link.credentials import urls

    bound = await server.start(host, port, context)
    for url in urls("http" if context is None else "https", host, bound):
        say(f"open {page_address(url, token)} in a browser; Ctrl-C ends")
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()


def model_for_browser(model: str) -> bytes:
    """The model's file for the page. Raises ConfigError if the model is not causal."""
    from encodec_rt.export.blob import blob
    from encodec_rt.model.encodec import EncodecModel

    return blob(EncodecModel.from_pretrained(model))


def page_address(url: str, token: str | None) -> str:
    """The address to open for the page at ``url``: the token follows the #, which is never sent."""
    return f"{url}/" if token is None else f"{url}/#token={token}"
