"""encodec-rt link: calls between two machines, and what they need to trust each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_rt.cli.console import (
    BackendOption,
    BandwidthOption,
    DeviceOption,
    ForceOption,
    ModelOption,
    load_codec,
    say,
)
from encodec_rt.errors import BackendUnavailable

if TYPE_CHECKING:
    from encodec_rt.link.ends import Sink, Source
    from encodec_rt.link.session import Call, CallOptions
    from encodec_rt.streaming.codec import Codec

SHOW_EVERY_S = 2.0

TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="Where the token is, if not in its usual place.")
]
PlayOption = Annotated[
    Path | None, typer.Option("--play", help="A sound file in place of the microphone.")
]
RecordOption = Annotated[
    Path | None, typer.Option("--record", help="Write what is heard, in place of the speaker.")
]
InputOption = Annotated[
    str | None, typer.Option("--input", help="Microphone, by index or part of its name.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", help="Speaker, by index or part of its name.")
]
DtxOption = Annotated[
    bool, typer.Option("--dtx/--no-dtx", help="Send nothing while nobody speaks.")
]
RedundancyOption = Annotated[
    bool, typer.Option("--redundancy/--no-redundancy", help="Repeat frames, coarsely.")
]
IceOption = Annotated[
    list[str] | None,
    typer.Option("--ice-server", help="stun: or turn: URL; none is asked by default."),
]
StatsOption = Annotated[
    Path | None, typer.Option("--stats-json", help="Write the call's statistics at its end.")
]


def listen(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port of the signalling.")] = 8443,
    once: Annotated[bool, typer.Option("--once", help="End after the first call.")] = False,
    play: PlayOption = None,
    record: RecordOption = None,
    source: InputOption = None,
    sink: OutputOption = None,
    stats_json: StatsOption = None,
    bandwidth: BandwidthOption = 6.0,
    dtx: DtxOption = True,
    redundancy: RedundancyOption = True,
    ice_server: IceOption = None,
    token_file: TokenOption = None,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    force: ForceOption = False,
) -> None:
    """Wait for calls, one at a time. Beyond loopback this is over TLS and with a token."""
    _require()
    from encodec_rt.link import security
    from encodec_rt.link.session import CallOptions

    folder = security.state_folder()
    certificate, key = folder / "link-cert.pem", folder / "link-key.pem"
    token = _token(token_file, needed=not security.is_loopback(host))
    context = None
    if not security.is_loopback(host):
        if not certificate.is_file():
            security.make_certificate(certificate, key, [host])
        context = security.server_context(certificate, key)
    options = CallOptions(bandwidth, redundancy, dtx, None, ice_servers=tuple(ice_server or ()))
    codec = _prepare(model, device, backend)
    fingerprint = security.read_fingerprint(certificate) if context is not None else None

    def announce(bound: int) -> None:
        url = f"{'http' if context is None else 'https'}://{host}:{bound}"
        pin = f" --fingerprint {fingerprint}" if fingerprint is not None else ""
        say(f"listening; on the other machine: encodec-rt link call {url}{pin}")

    calls = 0

    def open_ends() -> tuple[Source, Sink]:
        nonlocal calls
        calls += 1
        # A second call must not replace the first one's recording.
        name = record if record is None or calls == 1 else _numbered(record, calls)
        return _open_ends(codec, play, name, source, sink, force=force)

    asyncio.run(
        _listen(codec, options, open_ends, host, port, context, token, announce, once, stats_json)
    )


def call(
    url: Annotated[str, typer.Argument(help="What 'link listen' printed: https://HOST:PORT.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="SHA-256 of the other side's certificate, in hex.")
    ] = None,
    play: PlayOption = None,
    record: RecordOption = None,
    source: InputOption = None,
    sink: OutputOption = None,
    stats_json: StatsOption = None,
    bandwidth: BandwidthOption = 6.0,
    dtx: DtxOption = True,
    redundancy: RedundancyOption = True,
    ice_server: IceOption = None,
    token_file: TokenOption = None,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    force: ForceOption = False,
) -> None:
    """Call a machine that listens; ends with the file played, with Ctrl-C, or by the other side."""
    _require()
    from encodec_rt.link.session import CallOptions
    from encodec_rt.link.signalling import SignallingClient

    client = SignallingClient(
        url,
        token=_token(token_file, needed=url.startswith("https")),
        fingerprint=fingerprint,
    )
    # A second after the file's end everything that was said has been heard.
    hang_up_s = 1.0 if play is not None else None
    options = CallOptions(
        bandwidth, redundancy, dtx, hang_up_s, ice_servers=tuple(ice_server or ())
    )
    codec = _prepare(model, device, backend)

    async def main() -> None:
        from encodec_rt.link.session import Call

        ends = _open_ends(codec, play, record, source, sink, force=force)
        session = Call(codec, *ends, options)
        location = ""
        try:
            dialled = await client.dial(await session.offer())
            location = dialled.location
            await session.accept(dialled.answer)
            await _follow(session)
        finally:
            await session.close()
            await client.hang_up(location)
            _report(session, stats_json)

    asyncio.run(main())


def token(
    read: Annotated[
        bool, typer.Option("--import", help="Read another machine's token, without echo.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Replace the token there is.")] = False,
    token_file: TokenOption = None,
) -> None:
    """Print the token that a caller needs, making it first if there is none."""
    _require()
    from encodec_rt.link import security

    path = token_file or security.state_folder() / "link-token"
    if read:
        given = typer.prompt("token", hide_input=True, err=True).strip()
        security.check_token(given)
        security.write_secret(path, given.encode() + b"\n")
        say(f"wrote {path}")
        return
    exists = path.is_file() and not new
    typer.echo(security.read_token(path) if exists else security.make_token(path))
    say("on the other machine: encodec-rt link token --import")


def _require() -> None:
    """Raise BackendUnavailable unless the libraries of the link are installed."""
    try:
        import aiohttp
        import aiortc
        import cryptography
    except ImportError as error:
        raise BackendUnavailable(
            f"the link needs {error.name}; run: pip install 'encodec-rt[link]'"
        ) from error
    del aiohttp, aiortc, cryptography


def _prepare(model: str, device: str, backend: str) -> Codec:
    import torch

    from encodec_rt.loopback import warm_up

    # One frame is too little work to share between cores.
    torch.set_num_threads(1)
    codec = load_codec(model, device, backend)
    warm_up(codec, codec.config.target_bandwidths[0], "primed")
    return codec


def _token(path: Path | None, *, needed: bool) -> str | None:
    from encodec_rt.link import security

    if path is None and not needed:
        return None
    return security.read_token(path or security.state_folder() / "link-token")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _open_ends(
    codec: Codec,
    play: Path | None,
    record: Path | None,
    microphone: str | None,
    speaker: str | None,
    *,
    force: bool,
) -> tuple[Source, Sink]:
    from encodec_rt.link.devices import DeviceSink, DeviceSource
    from encodec_rt.link.ends import FileSink, FileSource
    from encodec_rt.live.devices import PortAudio

    config = codec.config
    system = PortAudio(config.sampling_rate, source=_choice(microphone), sink=_choice(speaker))
    source: Source = (
        FileSource(play, config) if play is not None else DeviceSource(system.open_source(), config)
    )
    try:
        sink: Sink = (
            FileSink(record, config, force=force)
            if record is not None
            else DeviceSink(system.open_sink(), config)
        )
    except BaseException:
        source.close()
        raise
    return source, sink


def _choice(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


async def _listen(
    codec: Codec,
    options: CallOptions,
    open_ends: Callable[[], tuple[Source, Sink]],
    host: str,
    port: int,
    context: Any,
    secret: str | None,
    announce: Callable[[int], None],
    once: bool,
    stats_json: Path | None,
) -> None:
    from encodec_rt.link.session import Call
    from encodec_rt.link.signalling import SignallingServer

    ended = asyncio.Event()

    class Line:
        """A call whose end is reported."""

        def __init__(self) -> None:
            self._call = Call(codec, *open_ends(), options)

        async def answer(self, offer: str) -> str:
            return await self._call.answer(offer)

        async def run(self) -> None:
            say("a call begins")
            try:
                await _follow(self._call)
            finally:
                _report(self._call, stats_json)
                if once:
                    ended.set()

        async def close(self) -> None:
            await self._call.close()

    server = SignallingServer(Line, token=secret)
    announce(await server.start(host, port, context))
    try:
        await ended.wait()
    finally:
        await server.close()


async def _follow(session: Call) -> None:
    """Run a call, with a line about it now and then."""

    async def show() -> None:
        while True:
            await asyncio.sleep(SHOW_EVERY_S)
            say(_line(session.statistics()))

    shown = asyncio.create_task(show())
    try:
        await session.run()
    finally:
        shown.cancel()


def _line(statistics: dict[str, Any]) -> str:
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    received, lost = inbound["packetsReceived"], inbound["packetsLost"]
    concealed = 100 * (inbound["concealedSamples"] - inbound["silentConcealedSamples"])
    round_trip_s = statistics["remote"].get("roundTripTime")
    trip = "-" if round_trip_s is None else f"{1000 * round_trip_s:.0f}"
    return (
        f"received {received}, lost {lost}, concealed "
        f"{concealed / max(1, inbound['totalSamplesReceived']):.1f} %, round trip {trip} ms, "
        f"sending {own['codebooks']} codebooks x {own['framesPerPacket']}, latency "
        f"{own['latencyMs']['sum']:.0f} ms"
    )


def _report(session: Call, stats_json: Path | None) -> None:
    from encodec_rt.atomic import replacing

    statistics = session.statistics()
    say(f"the call ended: {_line(statistics)}")
    if stats_json is not None:
        with replacing(stats_json, force=True) as part:
            part.write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")
