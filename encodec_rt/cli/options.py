"""Options that several commands share, and the codec that they ask for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_rt.cli.console import load_codec
from encodec_rt.cli.habits import hints_of

if TYPE_CHECKING:
    from encodec_rt.streaming.codec import Codec

BandwidthOption = Annotated[
    float,
    typer.Option("-b", "--bandwidth", help="Bandwidth in kbps, one of the model's."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", help='"default", a folder, a hub id, or an original .th file.', metavar="MODEL"
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help='"cpu", "cuda" or "cuda:N".')]
BackendOption = Annotated[
    str, typer.Option("--backend", help="auto, torch, cpu or triton.", metavar="BACKEND")
]
StartOption = Annotated[
    str,
    typer.Option("--start", help="How the stream begins: exact, primed or zero.", metavar="START"),
]
_DEVICE_HELP = "by its index or a part of its name; see 'encodec-rt devices'."
InputOption = Annotated[
    str | None, typer.Option("--input", help=f"Microphone, {_DEVICE_HELP}", metavar="DEVICE")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", help=f"Speaker, {_DEVICE_HELP}", metavar="DEVICE")
]
BufferOption = Annotated[
    float,
    typer.Option(
        "--buffer-ms",
        help="Milliseconds of audio to keep queued for the speaker.",
        min=5.0,
        max=1000.0,
    ),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", help="CPU threads for torch.", min=1, max=1024)
]
PortOption = Annotated[
    int, typer.Option("--port", help="TCP port; 0 for any free one.", min=0, max=65535)
]
RealTimeOption = Annotated[
    bool,
    typer.Option(
        "--real-time/--no-real-time", help="Run the codec with real-time priority (Linux)."
    ),
]
LmOption = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        metavar="FILE",
        help="Language model of the codes: for .encodec, one that is not the model's own; for "
        ".ecdc, the original's .th, whose files decode only where floating point gives equal bits.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]


@dataclasses.dataclass(frozen=True)
class CodecOptions:
    """The options of every command that runs the codec."""

    bandwidth: BandwidthOption = 6.0
    model: ModelOption = "default"
    device: DeviceOption = "cpu"
    backend: BackendOption = "auto"

    def load(self) -> Codec:
        """The codec that they ask for."""
        return load_codec(self.model, self.device, self.backend)


@dataclasses.dataclass(frozen=True)
class FileCodecOptions(CodecOptions):
    """The options of every command that runs the codec and writes files."""

    force: ForceOption = False


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer, which gets one option per field of parameters that are dataclasses."""
    hints = hints_of(command)
    groups: dict[str, Any] = {
        name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)
    }
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        members, types = [parameter], hints
        if group := groups.get(parameter.name):
            members = list(inspect.signature(group).parameters.values())
            types = hints_of(group)
        for one in members:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(one.replace(kind=kind, annotation=types[one.name]))

    def run(**given: Any) -> None:
        for name, kind in groups.items():
            chosen = {field.name: given.pop(field.name) for field in dataclasses.fields(kind)}
            given[name] = kind(**chosen)
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
