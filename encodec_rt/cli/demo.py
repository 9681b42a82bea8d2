"""encodec-rt demo: the bundled speech through the live codec, in real time."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import check_start, load_codec, output_console, printable, say
from encodec_rt.cli.file_options import warn
from encodec_rt.cli.options import (
    BackendOption,
    BandwidthOption,
    DeviceOption,
    ModelOption,
    StartOption,
    ThreadsOption,
)
from encodec_rt.errors import BackendUnavailable, InputError, WeightsError

if TYPE_CHECKING:
    from rich.table import Table

    from encodec_rt.live.loop import Loopback
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.streaming.weights import Start
    from encodec_rt.types import Audio

RANDOM_NOTICE = (
    "NOTE: no trained model is embedded yet. The weights of this run are random, "
    "so what comes out is noise; the timing is real, but of a smaller model."
)


def demo(
    source: Annotated[
        str, typer.Option("--input", metavar="IN", help="Audio in place of the bundled speech.")
    ] = "",
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for out.wav and out.png.", metavar="FOLDER")
    ] = Path("demo"),
    bandwidth: BandwidthOption = 6.0,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    start: StartOption = "primed",
    fast: Annotated[
        bool, typer.Option("--fast", help="Run as fast as possible, not in real time.")
    ] = False,
    threads: ThreadsOption = 1,
) -> None:
    """Send speech through the codec frame by frame, and measure it.

    Writes the decoded audio to out.wav and, where matplotlib is installed, a picture to out.png.
    """
    import torch

    from encodec_rt.audio import AudioWriter
    from encodec_rt.cli.figure import save_figure

    console = output_console()
    policy = check_start(start)
    torch.set_num_threads(threads)
    began = time.perf_counter()
    codec, is_random = _codec(model, device, backend)
    clip = source or str(resources.files("encodec_rt") / "assets" / "speech_en.flac")
    audio = _read(clip, codec)
    ready_s = time.perf_counter() - began
    if is_random:
        say(RANDOM_NOTICE)
    run = _run(codec, audio, bandwidth, policy, paced=not fast)
    folder.mkdir(parents=True, exist_ok=True)
    rate, channels = codec.config.sampling_rate, codec.config.audio_channels
    wav, png = folder / "out.wav", folder / "out.png"
    with AudioWriter(wav, rate_hz=rate, channels=channels, force=True) as writer:
        writer.write(run.audio)
    pacing = "flat out" if fast else "in real time"
    weights = "random weights" if is_random else _in_words(model, codec)
    where = f"{device}, {threads} thread{'s' if threads > 1 else ''}"
    title = f"Frame by frame {pacing}: {weights} at {bandwidth:g} kbps on {where}"
    seen = f"picture: {png}"
    try:
        save_figure(
            png,
            given=audio,
            made=run.audio,
            rate_hz=rate,
            encode_ms=run.encode_ms,
            decode_ms=run.decode_ms,
            late_ms=run.late_ms,
            frame_ms=run.frame_ms,
            title=title,
        )
    except BackendUnavailable as error:
        seen = f"no picture: {error}"
    console.print(printable(title), markup=False, highlight=False)
    console.print(_times(run))
    console.print(_facts(run, ready_s, seconds=audio.shape[1] / rate))
    console.print(
        printable(f"sound: {wav}   {seen}"), markup=False, highlight=False, soft_wrap=True
    )


def _in_words(model: str, codec: Codec) -> str:
    rate_khz = codec.config.sampling_rate / 1000
    name = "the embedded model" if model == "default" else Path(model).name or codec.name
    return f"{name} ({rate_khz:g} kHz)"


def _codec(model: str, device: str, backend: str) -> tuple[Codec, bool]:
    """The codec, and whether its weights are random because the embedded ones are missing."""
    import torch

    from encodec_rt.cli.console import check_device
    from encodec_rt.config import EncodecConfig
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.pretrained import DEFAULT, default_folder
    from encodec_rt.streaming.codec import Codec

    if model == DEFAULT:
        try:
            default_folder()
        except WeightsError:
            check_device(device)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                untrained = EncodecModel(EncodecConfig(num_filters=8)).eval()
                for stage in untrained.quantizer.stages:
                    stage.codebook.embed.normal_()
            return Codec(untrained, device=device, backend=backend), True
    return load_codec(model, device, backend), False


def _read(clip: str, codec: Codec) -> Audio:
    """The whole clip; a demo is short, and its picture needs all of it.

    A clip shorter than a frame is padded with silence. Raises InputError for an empty one.
    """
    import numpy as np

    from encodec_rt.audio import AudioReader

    config = codec.config
    with AudioReader(clip) as reader:
        blocks = list(reader.blocks(config.sampling_rate, config.audio_channels))
        warn(reader)
    samples = sum(block.shape[1] for block in blocks)
    if not samples:
        raise InputError(f"{reader.name} has no samples in it; give audio of any length")
    missing = max(0, config.hop_length - samples)
    return np.pad(np.concatenate(blocks, axis=1), ((0, 0), (0, missing)))


def _run(codec: Codec, audio: Audio, bandwidth: float, start: Start, *, paced: bool) -> Loopback:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from encodec_rt.live.loop import loop_back

    console = Console(stderr=True)
    frames = audio.shape[1] // codec.config.hop_length
    shown = 15
    columns = (
        TextColumn("live"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[line]}", style="bold"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("live", total=frames, line="")

        def show(run: Loopback) -> None:
            done = len(run.encode_ms)
            if done % shown and done < frames:
                return
            kbps = 8 * run.payload_bytes / (done * run.frame_ms)
            encode, decode = (
                sum(times[-shown:]) / len(times[-shown:])
                for times in (run.encode_ms, run.decode_ms)
            )
            line = (
                f"{done * run.frame_ms / 1000:4.1f} s  {kbps:.1f} kbps  encode {encode:.2f} ms  "
                f"decode {decode:.2f} ms  real-time factor {run.real_time_factor:.2f}"
            )
            bar.update(task, completed=done, line=line)

        return loop_back(
            codec, audio, bandwidth_kbps=bandwidth, start=start, paced=paced, on_frame=show
        )


def _times(run: Loopback) -> Table:
    import numpy as np
    from rich.table import Table

    table = Table()
    table.add_column("per frame, ms")
    for name in ("p50", "p99", "max"):
        table.add_column(name, justify="right")
    for name, times in (
        ("encode", run.encode_ms),
        ("decode", run.decode_ms),
        ("both", run.both_ms),
    ):
        shares = np.percentile(times, (50, 99, 100))
        table.add_row(name, *(f"{share:.2f}" for share in shares))
    return table


def _facts(run: Loopback, ready_s: float, *, seconds: float) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    frames = len(run.encode_ms)
    kbps = 8e-3 * run.payload_bytes / seconds
    table.add_row("audio", f"{seconds:.2f} s, {frames} frames of {run.frame_ms:.2f} ms")
    table.add_row(
        "packets", f"{run.packets}, {run.payload_bytes} bytes, {kbps:.2f} kbps of payload"
    )
    table.add_row("deadline misses", f"{run.misses} of {frames}")
    table.add_row("real-time factor", f"{run.real_time_factor:.3f}")
    table.add_row("start-up delay", f"{run.start_up_ms:.1f} ms from first sample in to first out")
    table.add_row("loading", f"{ready_s:.1f} s")
    return table
