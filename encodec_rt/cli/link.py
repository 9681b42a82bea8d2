"""encodec-rt link: calls between two machines, and what they need to trust each other."""

from __future__ import annotations

from typing import Annotated

import typer

from encodec_rt.cli.call_endpoints import rehearse
from encodec_rt.cli.codes_recording import recorder_for
from encodec_rt.cli.console import put, report, status_console
from encodec_rt.cli.interrupts import run_until_ended
from encodec_rt.cli.link_call import CallCourse, answer_calls, dial, prepare, require_link
from encodec_rt.cli.link_options import LinkOptions, TokenOption
from encodec_rt.cli.options import FileCodecOptions, PortOption, with_groups
from encodec_rt.cli.web import model_for_browser, page_address
from encodec_rt.errors import ConfigError


@with_groups
def listen(
    link: LinkOptions,
    options: FileCodecOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: PortOption = 8443,
    once: Annotated[bool, typer.Option("--once", help="End after the first call.")] = False,
    web: Annotated[
        bool, typer.Option("--web", help="Also serve a page that calls from a browser.")
    ] = False,
) -> None:
    """Wait for calls, one at a time.

    On any address but loopback, calls need TLS and a token.
    """
    require_link()
    from encodec_rt.link import credentials

    host = host.strip("[]")
    folder = credentials.state_folder()
    certificate, key = folder / "link-cert.pem", folder / "link-key.pem"
    token = link.token(needed=not credentials.is_loopback(host))
    context = None
    if not credentials.is_loopback(host):
        if not certificate.is_file():
            credentials.make_certificate(certificate, key, [host])
        context = credentials.server_context(certificate, key)
    page = model_for_browser(options.model) if web else None
    codec = prepare(options, link)
    recorder = recorder_for(codec, options, link)
    rehearse(codec, link, force=options.force)
    fingerprint = credentials.read_fingerprint(certificate) if context is not None else None

    def announce(bound: int) -> None:
        scheme = "http" if context is None else "https"
        pin = f" --fingerprint {fingerprint}" if fingerprint is not None else ""
        for url in credentials.urls(scheme, host, bound):
            report(f"listening; on the other machine: encodec-rt link call {url}{pin}")
            if page is not None:
                report(f"or open {page_address(url, token)} in a browser")

    calls = 0

    def make() -> CallCourse:
        nonlocal calls
        calls += 1
        call = link.for_call(options.bandwidth)
        return CallCourse(
            *(codec, link, call, status_console()),
            recorder=recorder,
            number=calls,
            force=options.force,
        )

    run_until_ended(
        answer_calls(
            make, host, port,
            context=context, token=token, announce=announce, once=once, page=page,
        )
    )  # fmt: skip


@with_groups
def call(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="What 'link listen' printed: https://HOST:PORT.")
    ],
    link: LinkOptions,
    options: FileCodecOptions,
    fingerprint: Annotated[
        str | None, typer.Option(help="SHA-256 of the other side's certificate, in hex.")
    ] = None,
    channel: Annotated[
        bool, typer.Option("--channel", help="Use a data channel, as for calls to a web page.")
    ] = False,
) -> None:
    """Call a listening machine, or a page of 'encodec-rt web'.

    The call lasts until the played file ends, Ctrl-C, or the other side hangs up.
    """
    require_link()
    from encodec_rt.link.dialling import SignallingClient

    token = link.token(needed=url.startswith("https"))
    client = SignallingClient(url, token=token, fingerprint=fingerprint)
    codec = prepare(options, link)
    recorder = recorder_for(codec, options, link)
    # A second after the file's end everything that was said has been heard.
    hang_up_s = 1.0 if link.play is not None else None

    def make() -> CallCourse:
        call = link.for_call(options.bandwidth, hang_up_s=hang_up_s, channel=channel)
        return CallCourse(
            *(codec, link, call, status_console()), recorder=recorder, force=options.force
        )

    run_until_ended(dial(make, client))


def token(
    read: Annotated[
        bool, typer.Option("--import", help="Read another machine's token, without echo.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Replace the existing token.")] = False,
    token_file: TokenOption = None,
) -> None:
    """Print the token that a caller needs; make one if there is none."""
    require_link()
    from encodec_rt.link import credentials

    path = token_file or credentials.state_folder() / "link-token"
    if read:
        given = _asked_for("token").strip()
        credentials.check_token(given)
        credentials.write_secret(path, given.encode() + b"\n")
        report(f"wrote {path}")
        return
    exists = path.is_file() and not new
    put(credentials.read_token(path) if exists else credentials.make_token(path))
    report("on the other machine: encodec-rt link token --import")


def _asked_for(name: str) -> str:
    """A line of standard input, not shown. Raises ConfigError if there is none."""
    try:
        return str(typer.prompt(name, hide_input=True, err=True))
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise ConfigError(f"no {name} came on standard input; paste it, or pipe it in") from None
