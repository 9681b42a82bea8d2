"""encodec-rt serve: many live sessions on one engine, over WebSockets and WebRTC."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_rt.cli.console import say
from encodec_rt.cli.interrupts import run_until_ended
from encodec_rt.cli.link_options import TokenOption
from encodec_rt.cli.options import CodecOptions, with_groups
from encodec_rt.errors import ConfigError, StateError
from encodec_rt.extras import needed_for

if TYPE_CHECKING:
    import ssl

    from encodec_rt.server.service import StreamServer

SWITCH_S = 0.0005
"""How long one thread may keep the interpreter while another waits; a step has many short calls."""


class _JsonLines(logging.Formatter):
    """A log record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, where from, and what."""
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


@with_groups
def serve(
    context: typer.Context,
    options: CodecOptions,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=0, max=65535)] = 8445,
    sessions: Annotated[
        int, typer.Option(help="Sessions at once; 0 measures how many fit.", min=0)
    ] = 0,
    calls: Annotated[
        int,
        typer.Option(help="Calls over WebRTC at once, of these sessions; none by default.", min=0),
    ] = 0,
    state: Annotated[
        Path | None, typer.Option(help="Folder that keeps sessions for a restart.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web page that may connect; none by default.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that SIGTERM gives sessions to end.", min=0.0)
    ] = 30.0,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with these options; flags have precedence.")
    ] = None,
    token_file: TokenOption = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Let six clients talk to a server, and end.")
    ] = False,
) -> None:
    """Serve live sessions over WebSockets, and calls over WebRTC.

    They take audio to codes, codes to audio, or both; a call hears itself. Beyond loopback
    this is over TLS and with a token. SIGTERM lets sessions end; Ctrl-C does not wait. -b is the
    highest bandwidth that a session may ask for.
    """
    given = {
        "host": host, "port": port, "sessions": sessions, "calls": calls, "state": state,
        "origin": origin,
        "drain_s": drain_s, "certificate": certificate, "key": key, "token_file": token_file,
    }  # fmt: skip
    if config is not None:
        _fill_in(given, context, config)
    with needed_for("a server"):
        import prometheus_client  # noqa: F401

        from encodec_rt.server.service import StreamServer  # noqa: F401
    if demo:
        from encodec_rt.cli import serve_demo

        arguments = ["--model", options.model, "-b", f"{options.bandwidth:g}"]
        serve_demo.demo(options.load(), options.bandwidth, arguments)
        return
    sys.setswitchinterval(SWITCH_S)
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    run_until_ended(_serve(options, given))


def _fill_in(given: dict[str, Any], context: typer.Context, path: Path) -> None:
    """Take from a JSON file what no flag says. Raises ConfigError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(told, dict) or not told.keys() <= given.keys():
        raise ConfigError(f"{path}: a JSON object with some of {', '.join(sorted(given))}")
    for name, value in told.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "DEFAULT":
            kind = type(given[name])
            wanted = (int, float) if kind is float else (str, list) if given[name] is None else kind
            if not isinstance(value, wanted):
                raise ConfigError(f"{path}: {name}={value!r} is not what --{name} takes")
            given[name] = value


def _access(given: dict[str, Any]) -> tuple[str | None, ssl.SSLContext | None]:
    """The token and the TLS context, both None for loopback without either."""
    from encodec_rt.link import credentials

    folder, host = credentials.state_folder(), given["host"]
    token_file, certificate, key = (
        None if given[name] is None else Path(given[name])
        for name in ("token_file", "certificate", "key")
    )
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key belong together; give both or neither")
    if credentials.is_loopback(host) and certificate is None:
        return (None if token_file is None else credentials.read_token(token_file)), None
    token = credentials.read_token(token_file or folder / "link-token")
    if certificate is None or key is None:
        certificate, key = folder / "link-cert.pem", folder / "link-key.pem"
        if not certificate.is_file():
            credentials.make_certificate(certificate, key, [host])
    say(f"the certificate's fingerprint is {credentials.read_fingerprint(certificate)}")
    return token, credentials.server_context(certificate, key)


async def _serve(options: CodecOptions, given: dict[str, Any]) -> None:
    from encodec_rt.link import credentials
    from encodec_rt.server.limits import SessionLimits
    from encodec_rt.server.service import ServerOptions, StreamServer
    from encodec_rt.server.store import SessionStore

    token, context = _access(given)
    codec = options.load()
    slots = given["sessions"] or _capacity(options, codec)
    folder = given["state"] or credentials.state_folder() / "sessions"
    limits = SessionLimits(drain_s=given["drain_s"])
    origins = frozenset(given["origin"] or ())
    server = StreamServer(
        codec, slots, options.bandwidth, SessionStore(Path(folder)),
        ServerOptions(token, origins, limits, calls=given["calls"]),
    )  # fmt: skip
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    bound = await server.start(given["host"], given["port"], context)
    scheme = "http" if context is None else "https"
    say(f"serving up to {slots} sessions on {scheme}://{given['host']}:{bound}; Ctrl-C ends")
    await _until(ending, server)


async def _until(ending: asyncio.Event, server: StreamServer) -> None:
    """Serve until told to end; a server whose engine has died ends too, to be started again."""
    try:
        while not ending.is_set():
            try:
                await asyncio.wait_for(ending.wait(), 1.0)
            except asyncio.TimeoutError:
                if not server.is_alive:
                    raise StateError("the engine's thread has ended; see the log") from None
        await server.drain()
    except BaseException:
        await server.close()
        raise


def _capacity(options: CodecOptions, codec: Any) -> int:
    from encodec_rt.server.capacity import measure_capacity

    if codec.device.type != "cpu":
        raise ConfigError(f"--sessions on {codec.device}: say how many; it is measured on a CPU")
    import torch

    torch.set_num_threads(1)
    fits = measure_capacity(codec, options.bandwidth)
    if not fits:
        raise ConfigError(
            "not even one session keeps its deadline on this machine as busy as it is; "
            "--sessions 1 serves one all the same"
        )
    return fits
