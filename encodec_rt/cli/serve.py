"""encodec-rt serve: many live sessions on one engine, over WebSockets and WebRTC."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_rt.cli.console import say
from encodec_rt.cli.interrupts import run_until_ended
from encodec_rt.cli.link_options import TokenOption
from encodec_rt.cli.options import CodecOptions, with_groups
from encodec_rt.cli.web import model_for_browser, page_address
from encodec_rt.errors import ConfigError, StateError
from encodec_rt.extras import needed_for

if TYPE_CHECKING:
    from encodec_rt.server.fronts import FrontedServer
    from encodec_rt.server.service import StreamServer
    from encodec_rt.server.settings import ServeSettings


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
        typer.Option(help="How many of the sessions may be calls over WebRTC.", min=0),
    ] = 0,
    fronts: Annotated[
        int,
        typer.Option(
            help="Processes that handle the WebSockets; 0: the engine's own process does.",
            min=0,
            max=64,
        ),
    ] = 0,
    web: Annotated[
        bool, typer.Option("--web", help="Also serve a page that calls from a browser.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder that keeps sessions across a restart."),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may connect; repeatable.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that sessions have to end after SIGTERM.", min=0.0)
    ] = 30.0,
    requests_per_s: Annotated[
        float, typer.Option(help="Requests per second that one address may send.", min=1.0, max=1e6)
    ] = 50.0,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with these options; flags take precedence.")
    ] = None,
    token_file: TokenOption = None,
    ray: Annotated[
        str | None,
        typer.Option(help='Serve on a Ray cluster: its address, or "local".', metavar="ADDRESS"),
    ] = None,
    workers: Annotated[int, typer.Option(help="With --ray, how many servers to start.", min=1)] = 2,
    demo: Annotated[
        bool, typer.Option("--demo", help="Let six clients talk to a server, and exit.")
    ] = False,
) -> None:
    """Serve live sessions over WebSockets, and calls over WebRTC.

    A session turns audio into codes, codes into audio, or both; a call hears itself. On any address
    but loopback, TLS and a token are needed. SIGTERM lets sessions end; Ctrl-C does not wait. -b is
    the highest bandwidth that a session may ask for.
    """
    given: dict[str, Any] = {
        "host": host, "port": port, "sessions": sessions, "calls": calls, "web": web,
        "fronts": fronts, "state": state,
        "origin": origin, "ray": ray, "workers": workers,
        "drain_s": drain_s, "requests_per_s": requests_per_s,
        "certificate": certificate, "key": key, "token_file": token_file,
        **dataclasses.asdict(options),
    }  # fmt: skip
    if config is not None:
        _fill_in(given, context, config)
        options = CodecOptions(**{one.name: given[one.name] for one in dataclasses.fields(options)})
    with needed_for("a server"):
        import prometheus_client  # noqa: F401

        from encodec_rt.server.service import StreamServer  # noqa: F401
    if demo:
        from encodec_rt.cli import serve_demo

        arguments = ["--model", options.model, "-b", f"{options.bandwidth:g}"]
        serve_demo.demo(options.load(), options.bandwidth, arguments)
        return
    from encodec_rt.server.logs import log_as_json
    from encodec_rt.server.settings import SWITCH_S

    sys.setswitchinterval(SWITCH_S)
    log_as_json()
    settings, cluster = _settings(options, given), given["ray"]
    if cluster is not None:
        if settings.page is not None:
            raise ConfigError("--web is for one server; with --ray, sessions are placed on several")
        from encodec_rt.cli.serve_ray import serve_on_ray

        run_until_ended(serve_on_ray(options, settings, cluster, given["workers"]))
        return
    run_until_ended(_serve(options, settings))


def _fill_in(given: dict[str, Any], context: typer.Context, path: Path) -> None:
    """Take from a JSON file what no flag says. Raises ConfigError."""
    try:
        wanted = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(wanted, dict) or not wanted.keys() <= given.keys():
        raise ConfigError(f"{path}: expected a JSON object with some of {', '.join(sorted(given))}")
    for option in context.command.params:
        if option.name not in wanted:
            continue
        try:
            value = _as_given(option, wanted[option.name], context)
        except (typer.BadParameter, TypeError) as error:
            told = getattr(error, "message", "of another type than the option takes")
            shown = json.dumps(wanted[option.name])[:80]
            raise ConfigError(f"{path}: {option.name} {shown}: {told}") from None
        source = context.get_parameter_source(option.name)
        if source is not None and source.name == "DEFAULT":
            given[option.name] = value


def _as_given(option: Any, value: Any, context: typer.Context) -> Any:
    """A JSON value as the command line would give it; null means that the option is absent.

    Raises TypeError for another type, BadParameter for a value that the option refuses.
    """
    if value is None:
        return option.get_default(context)
    if option.multiple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise TypeError
        return value
    kind = type(option.get_default(context))
    kinds = (int, float) if kind is float else kind if kind in (bool, int) else str
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if isinstance(value, float) and not math.isfinite(value):
        raise typer.BadParameter("a finite number is needed")
    return value if kind is bool else option.process_value(context, str(value))


def _settings(options: CodecOptions, given: dict[str, Any]) -> ServeSettings:
    from encodec_rt.server.settings import ServeSettings

    if given["fronts"] and (given["calls"] or given["web"] or given["ray"] is not None):
        raise ConfigError(
            "--fronts handle only WebSockets on one machine; leave out --calls, --web, --ray"
        )
    if given["web"] and not given["calls"]:
        raise ConfigError("--web needs --calls: the page calls this server")
    if 0 < given["sessions"] < given["calls"]:
        raise ConfigError(
            f"--calls {given['calls']} of --sessions {given['sessions']}; calls are sessions, so "
            "give at most as many"
        )
    paths = {
        name: None if given[name] is None else Path(given[name])
        for name in ("state", "certificate", "key", "token_file")
    }
    return ServeSettings(
        host=given["host"].strip("[]"),
        port=given["port"],
        bandwidth_kbps=options.bandwidth,
        sessions=given["sessions"],
        calls=given["calls"],
        fronts=given["fronts"],
        page=model_for_browser(options.model) if given["web"] else None,
        origins=tuple(given["origin"] or ()),
        drain_s=given["drain_s"],
        requests_per_s=given["requests_per_s"],
        **paths,
    )


async def _serve(options: CodecOptions, settings: ServeSettings) -> None:
    import torch

    from encodec_rt.link.credentials import urls

    # Two threads of torch beside any other busy process make single frames late.
    torch.set_num_threads(1)
    access = settings.access()
    if access.fingerprint is not None:
        say(f"the certificate's fingerprint is {access.fingerprint}")
    server = settings.make_server(options.load(), access)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    bound = await server.start(settings.host, settings.port, access.context)
    found = urls(access.scheme, settings.host, bound)
    at = " and ".join(found)
    say(f"serving up to {server.sessions.slots} sessions on {at}; Ctrl-C ends")
    if settings.page is not None:
        for url in found:
            say(f"open {page_address(url, access.token)} in a browser to call")
    await _until(ending, server)


async def _until(ending: asyncio.Event, server: StreamServer | FrontedServer) -> None:
    """Serve until told to end; a server whose engine has died also ends, to be restarted."""
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
