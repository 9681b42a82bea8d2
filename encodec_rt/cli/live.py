"""encodec-rt live and encodec-rt devices: the codec between microphone and speaker."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.codes_recording import CodesRecorder
from encodec_rt.cli.console import (
    device_choice,
    event_printer,
    output_console,
    put,
    report,
    report_abandoned,
    say,
    status_console,
)
from encodec_rt.cli.interrupts import was_wanted
from encodec_rt.cli.options import (
    BufferOption,
    FileCodecOptions,
    InputOption,
    OutputOption,
    RealTimeOption,
    with_groups,
)
from encodec_rt.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from encodec_rt.live.duplex import Duplex
    from encodec_rt.live.mouth_to_ear import Delay, Probe
    from encodec_rt.sound.meter import Status

_SHOW_EVERY_S = 0.2


def devices() -> None:
    """List the sound devices that 'live' and 'link' can use."""
    from encodec_rt.sound.devices import list_devices

    found = list_devices()
    for device in found:
        default = "".join(f", default {way}" for way in device.default_for)
        put(
            f"{device.index:3d}  {device.name}  ({device.host}; {device.input_channels} in, "
            f"{device.output_channels} out, {device.rate_hz} Hz{default})"
        )
    if not found:
        say("no sound device was found; plug one in, or check that the sound service runs")


@with_groups
def live(
    options: FileCodecOptions,
    source: InputOption = None,
    sink: OutputOption = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record the decoded audio.", metavar="OUT"),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Record the codes.", metavar="OUT.encodec")
    ] = None,
    playback: Annotated[
        bool, typer.Option("--playback/--no-playback", help="Play through the speaker.")
    ] = True,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure mouth-to-ear latency with chirps, and exit.")
    ] = False,
    stats_json: Annotated[
        Path | None,
        typer.Option(help="Write counters, times and latencies when the session ends."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Stop after this many seconds.", metavar="SECONDS", min=0.0)
    ] = None,
    buffer_ms: BufferOption = 40.0,
    real_time: RealTimeOption = False,
) -> None:
    """Hear the microphone through the codec, until Ctrl-C."""
    import torch

    from encodec_rt.atomic import check_target
    from encodec_rt.audio import AudioRecording
    from encodec_rt.cli.live_panel import plain_line
    from encodec_rt.live.duplex import Duplex
    from encodec_rt.live.loop import CodecLoop
    from encodec_rt.live.mouth_to_ear import Probe
    from encodec_rt.sound.portaudio import PortAudio
    from encodec_rt.sound.realtime import check_real_time

    if measure and (record or save or not playback):
        raise ConfigError("--measure plays chirps, so it needs playback and excludes recording")
    if stats_json is not None:
        check_target(stats_json, force=True)
    if real_time:
        check_real_time()
    # One frame is too little work to share, and the other cores are needed for the callbacks.
    torch.set_num_threads(1)
    codec = options.load()
    # Collecting garbage among all that was loaded takes a tenth of a second.
    gc.freeze()
    rate_hz = codec.config.sampling_rate
    loop = CodecLoop(codec, options.bandwidth, decode=playback or record is not None)
    probe = Probe(rate_hz) if measure else None
    console = status_console()
    duplex = Duplex(
        loop,
        PortAudio(rate_hz, source=device_choice(source), sink=device_choice(sink)),
        playback=playback,
        keep_all=record is not None or save is not None,
        buffer_ms=buffer_ms,
        on_event=event_printer(console),
        replace_output=probe.replace_output if probe is not None else None,
    )
    wav = None
    if record is not None:
        wav = AudioRecording(record, rate_hz=rate_hz, force=options.force)
    codes = None if save is None else CodesRecorder(codec, loop.codebooks, options).open(save)
    report_abandoned(record, save)
    loop.record(wav=wav, codes=codes)
    duplex.open()
    _run(duplex, duration, probe, console, real_time=real_time)
    status = duplex.status()
    report(plain_line(status))
    codec_ms = status.encode_ms[0] + status.decode_ms[0]
    if codec_ms > status.budget.hop:
        say(
            f"warning: the codec took {codec_ms:.1f} ms per frame of {status.budget.hop:.1f} ms, "
            "too slow for live use here; try a smaller model or another --backend"
        )
    for path in (record, save):
        if path is not None and loop.frames:
            report(f"wrote {path}: {loop.samples_in / rate_hz:.2f} s")
    _report(status, probe, stats_json)


def _run(
    duplex: Duplex,
    duration_s: float | None,
    probe: Probe | None,
    console: Console,
    *,
    real_time: bool,
) -> None:
    """Run ``duplex`` in its own thread, and display it, until there is a reason to end."""
    from encodec_rt.cli.live_panel import Display, panel, plain_line
    from encodec_rt.sound.realtime import run_in_real_time

    stop = threading.Event()
    end_s = time.monotonic() + (math.inf if duration_s is None else duration_s)
    with (
        ThreadPoolExecutor(1, initializer=run_in_real_time if real_time else None) as worker,
        Display(console, panel, plain_line) as shown,
    ):
        try:
            session = worker.submit(duplex.run, stop.is_set)
            while not session.done() and time.monotonic() < end_s:
                if probe is not None and probe.done:
                    break
                shown.show(duplex.status())
                wait([session], timeout=_SHOW_EVERY_S)
        except KeyboardInterrupt:
            # This is how a session ends; what it recorded is finished below.
            was_wanted()
        finally:
            stop.set()
        session.result()


def _report(status: Status, probe: Probe | None, stats_json: Path | None) -> None:
    """Write the statistics, and say what was measured. Raises AudioDeviceError if that failed."""
    from encodec_rt.atomic import replacing
    from encodec_rt.cli.live_panel import status_json

    found = {} if probe is None else _found(probe)
    if stats_json is not None:
        measured = {name: asdict(delay) for name, delay in found.items()}
        with replacing(stats_json, force=True) as part:
            statistics = status_json(status, measured)
            part.write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")
    if probe is not None:
        probe.require()
        _show_delay(status, found)


def _found(probe: Probe) -> dict[str, Delay]:
    """The measured delays, by where the chirps were found."""
    delays = {"byMicrophone": probe.before_codec(), "byDecoder": probe.after_codec()}
    return {name: delay for name, delay in delays.items() if delay is not None}


def _show_delay(status: Status, found: dict[str, Delay]) -> None:
    """The result of a measurement beside the budget, on standard output."""
    from encodec_rt.cli.live_panel import budget_table

    put(f"mouth to ear, by what the microphone heard: {_in_words(found['byMicrophone'])}")
    if "byDecoder" in found:
        put(f"mouth to ear, by what the decoder gave:     {_in_words(found['byDecoder'])}")
    else:
        put("the codec's output is too unlike the chirps to be found by correlation")
    put("this includes the air between speaker and microphone, 3 ms per metre")
    names = {"byMicrophone": "measured, by microphone", "byDecoder": "measured, by decoder"}
    measured = {names[name]: delay.median_ms for name, delay in found.items()}
    output_console().print(budget_table(status.budget, measured))


def _in_words(delay: Delay) -> str:
    return (
        f"{delay.median_ms:.1f} ms ({delay.lowest_ms:.1f} to {delay.highest_ms:.1f}, "
        f"{delay.agreeing} of {delay.chirps} chirps)"
    )
