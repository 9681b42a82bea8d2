"""encodec-rt link demo: both ends of a call on one machine, with a bad network between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_rt.cli.console import output_console, printable, report, say
from encodec_rt.cli.options import BackendOption, BandwidthOption, DeviceOption, ModelOption
from encodec_rt.errors import LinkError

if TYPE_CHECKING:
    from rich.table import Table

    from encodec_rt.netsim.impairment import PathProfile
    from encodec_rt.streaming.codec import Codec

PORT = 8443
START_S = 120
END_S = 60
SIDES = ("caller", "listener")


MAX_DELAY_MS = 10_000.0
DelayOption = Annotated[
    float, typer.Option("--delay-ms", help="One-way delay.", min=0.0, max=MAX_DELAY_MS)
]
JitterOption = Annotated[
    float,
    typer.Option(
        "--jitter-ms", help="Mean of the exponential jitter on top.", min=0.0, max=MAX_DELAY_MS
    ),
]


def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for what each side heard.", metavar="FOLDER")
    ] = Path("demo-link"),
    loss: Annotated[float, typer.Option(help="Share of packets lost, below 1.", min=0.0)] = 0.1,
    burst: Annotated[
        float, typer.Option(help="Mean number of packets lost in a row.", min=1.0)
    ] = 1.5,
    delay_ms: DelayOption = 40.0,
    jitter_ms: JitterOption = 8.0,
    rate_kbps: Annotated[
        float, typer.Option(help="Bottleneck in kbit/s; 0 for none.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the losses and delays.", min=0)] = 0,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Simulate the network in one process.")
    ] = False,
    bandwidth: BandwidthOption = 6.0,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
) -> None:
    """Call over a bad network within this machine.

    Two network namespaces play bundled speech to each other over a path that loses and delays
    packets. Where namespaces are not allowed, the same call runs in one process on a virtual clock.
    Writes heard-by-caller.wav, heard-by-listener.wav and the statistics of both sides.
    """
    from encodec_rt.cli.demo import RANDOM_NOTICE
    from encodec_rt.cli.demo import _codec as demo_codec
    from encodec_rt.cli.link_call import require_link
    from encodec_rt.netsim.impairment import PathProfile
    from encodec_rt.netsim.netns import why_unavailable

    console = output_console()
    require_link()
    network = PathProfile(
        delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss, burst=burst, rate_kbps=rate_kbps
    )
    codec, is_random = demo_codec(model, device, backend)
    if is_random:
        say(RANDOM_NOTICE)
    folder.mkdir(parents=True, exist_ok=True)
    reason = "--in-process was given" if in_process else why_unavailable()
    if reason is None:
        report("two network namespaces, one process in each; the call takes as long as the speech")
        statistics = _call(codec, network, seed, folder, bandwidth, device, backend)
    else:
        report(f"in one process, on a virtual clock: {reason}")
        statistics = _simulate(codec, network, seed, folder, bandwidth)
    for side, values in statistics.items():
        path = folder / f"statistics-{side}.json"
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    console.print(_table(statistics))
    heard = ", ".join(str(_heard(folder, side)) for side in SIDES)
    console.print(printable(f"heard: {heard}"), markup=False, highlight=False)


def _clip(side: str) -> Path:
    """What a side says."""
    name = {"caller": "speech_en.flac", "listener": "speech_it.flac"}[side]
    return Path(str(resources.files("encodec_rt"))) / "assets" / name


def _heard(folder: Path, side: str) -> Path:
    return folder / f"heard-by-{side}.wav"


def _call(
    codec: Codec,
    network: PathProfile,
    seed: int,
    folder: Path,
    bandwidth: float,
    device: str,
    backend: str,
) -> dict[str, Any]:
    from encodec_rt.link import credentials
    from encodec_rt.netsim.netns import Rig

    with tempfile.TemporaryDirectory() as name, Rig(network, seed) as rig:
        state = Path(name) / "encodec-rt"
        here, there = rig.sides
        credentials.make_token(state / "link-token")
        certificate = state / "link-cert.pem"
        credentials.make_certificate(certificate, state / "link-key.pem", [here.address])
        codec.model.save_pretrained(Path(name) / "model")
        environment = os.environ | {"XDG_CONFIG_HOME": name}

        def command(verb: str, side: str, *arguments: str) -> list[str]:
            return [
                *(sys.executable, "-m", "encodec_rt", "link", verb, *arguments),
                *("--play", str(_clip(side)), "--record", str(_heard(folder, side)), "--force"),
                *("--stats-json", str(Path(name) / f"{side}.json"), "-b", str(bandwidth)),
                *("--model", str(Path(name) / "model")),
                *("--device", device, "--backend", backend),
            ]

        waiting = subprocess.Popen(
            here.command(*command("listen", "listener", "--host", here.address, "--once")),
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        ends = [waiting]
        try:
            _wait_for_listener(waiting)
            url = f"https://{here.address}:{PORT}"
            pin = credentials.read_fingerprint(certificate)
            calling = subprocess.Popen(
                there.command(*command("call", "caller", url, "--fingerprint", pin)),
                env=environment,
                text=True,
                start_new_session=True,
            )
            ends.append(calling)
            if calling.wait(START_S):
                raise LinkError(f"the calling side ended with status {calling.returncode}")
            waiting.communicate(timeout=END_S)
        except subprocess.TimeoutExpired as error:
            raise LinkError(f"one side of the call did not end within {error.timeout} s") from error
        except KeyboardInterrupt:
            # In their own sessions both sides get the signal once, from here, and keep their files.
            for end in ends:
                end.send_signal(signal.SIGINT)
            for end in ends:
                with suppress(subprocess.TimeoutExpired):
                    end.wait(END_S)
            say(f"interrupted; what was heard by then, if anything, is in {folder}")
            raise
        finally:
            for end in ends:
                end.kill()
                end.wait()
        return {
            side: json.loads((Path(name) / f"{side}.json").read_text(encoding="utf-8"))
            for side in SIDES
        }


def _wait_for_listener(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("listening"):
            return
    raise LinkError(f"the listening side did not start: {''.join(said).strip()}")


def _simulate(
    codec: Codec, network: PathProfile, seed: int, folder: Path, bandwidth: float
) -> dict[str, Any]:
    import numpy as np

    from encodec_rt.audio import AudioReader, AudioWriter
    from encodec_rt.netsim.impairment import Channel
    from encodec_rt.netsim.simulate import simulate
    from encodec_rt.voice.bitrate import RateController
    from encodec_rt.voice.receiver import Receiver

    config = codec.config
    statistics: dict[str, Any] = {}
    for at, (side, other) in enumerate(zip(SIDES, reversed(SIDES), strict=True)):
        with AudioReader(_clip(other)) as reader:
            blocks = list(reader.blocks(config.sampling_rate, config.audio_channels))
        encoder = codec.stream_encoder(bandwidth)
        codes = np.concatenate([encoder.push(np.concatenate(blocks, axis=1)), encoder.flush()])
        listener = Receiver(codec.stream_decoder(bandwidth))
        controller = RateController(
            codebooks=codes.shape[1], bits=config.codebook_nbits, frame_rate_hz=config.frame_rate
        )
        channel = Channel(network, seed + at)
        heard = simulate(codes, channel, listener, controller=controller)
        with AudioWriter(
            _heard(folder, side),
            rate_hz=config.sampling_rate,
            channels=config.audio_channels,
            force=True,
        ) as writer:
            writer.write(heard.audio.reshape(config.audio_channels, -1))
        statistics[side] = {"inbound": listener.statistics.as_dict()}
    return statistics


def _table(statistics: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("heard by")
    for side in SIDES:
        table.add_column(side, justify="right")

    def row(name: str, read: Any) -> None:
        table.add_row(name, *(read(statistics[side]["inbound"]) for side in SIDES))

    row("packets received", lambda s: str(s["packetsReceived"]))
    row("packets lost", lambda s: str(s["packetsLost"]))
    row("packets too late or refused", lambda s: str(s["packetsDiscarded"]))
    row("frames recovered from copies", lambda s: str(s["encodecRt"]["recoveredFrames"]))
    row("late frames that repaired the state", lambda s: str(s["encodecRt"]["repairedFrames"]))
    row("concealed, %", lambda s: f"{100 * _concealed(s):.1f}")
    row("jitter buffer, ms", lambda s: f"{1000 * _buffered_s(s):.0f}")
    return table


def _concealed(inbound: dict[str, Any]) -> float:
    silent = inbound["silentConcealedSamples"]
    return float((inbound["concealedSamples"] - silent) / max(1, inbound["totalSamplesReceived"]))


def _buffered_s(inbound: dict[str, Any]) -> float:
    return float(inbound["jitterBufferDelay"] / max(1, inbound["jitterBufferEmittedCount"]))
