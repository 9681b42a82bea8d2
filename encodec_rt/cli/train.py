"""encodec-rt train: train a model, or continue training it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import check_device, report
from encodec_rt.cli.options import DeviceOption, ThreadsOption
from encodec_rt.errors import ConfigError

if TYPE_CHECKING:
    from encodec_rt.training.recipe import TrainingConfig
    from encodec_rt.training.run import Budget

_MAX_MINUTES = 366 * 24 * 60


def train(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run; one that exists is resumed.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="The packed audio that encodec-rt data index made.")
    ],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="default, cpu-tiny, default-48k, gpu, adversarial, decoder, decoder-adversarial, "
            "paper or smoke.",
        ),
    ] = "default",
    config: Annotated[
        Path | None, typer.Option("--config", help="A training.json instead of a preset.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Length of the whole run.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="End the run after so much time.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start-from", metavar="MODEL", help="Weights that a new run begins with."),
    ] = None,
    discriminator: Annotated[
        Path | None,
        typer.Option(
            "--discriminator",
            metavar="CHECKPOINT",
            help="Another run's checkpoint.pt, whose discriminator a new run begins with.",
        ),
    ] = None,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the trained model to this folder.")
    ] = None,
) -> None:
    """Train EnCodec on packed audio, or continue training it.

    RUN gets checkpoints, curves and validation audio.
    """
    import torch
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.training.curves import plot_curves
    from encodec_rt.training.export import export_weights
    from encodec_rt.training.run import Run, read_checkpoint

    check_device(device)
    torch.set_num_threads(threads)
    session = Run(
        run,
        data,
        _for_this_machine(_config(preset, config), device),
        _budget(steps, minutes),
        device=torch.device(device),
        start_from=None if start is None else EncodecModel.from_pretrained(start),
        discriminator_from=None if discriminator is None else read_checkpoint(discriminator),
    )
    columns = TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1.0)
        session.train(report, lambda progress: bar.update(task, completed=progress))
    plot_curves(run / "curves.csv", run / "curves.png")
    if export is not None:
        export_weights(session.trainer.average, export)
        report(f"{export} holds the model")


def _for_this_machine(config: TrainingConfig, device: str) -> TrainingConfig:
    """``config``, in float32 if ``device`` would have to emulate bfloat16, several times slower."""
    from encodec_rt.training.recipe import computes_bfloat16

    if config.precision == "bfloat16" and not computes_bfloat16(device):
        report(f"{device} has no bfloat16 arithmetic: training in float32")
        return replace(config, precision="float32")
    return config


def _config(preset: str, config: Path | None) -> TrainingConfig:
    from encodec_rt.training.presets import PRESETS
    from encodec_rt.training.recipe import TrainingConfig

    if config is not None:
        return TrainingConfig.load(config)
    if preset not in PRESETS:
        raise ConfigError(f"preset={preset!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[preset]


def _budget(steps: int | None, minutes: float | None) -> Budget:
    from encodec_rt.training.run import Budget

    if steps is None and minutes is None:
        raise ConfigError("say how long to train: --steps or --minutes")
    if minutes is None:
        return Budget(steps=steps)
    if not 0 < minutes <= _MAX_MINUTES:
        raise ConfigError(f"minutes={minutes}; accepted: above 0, up to {_MAX_MINUTES} (a year)")
    deadline = datetime.now() + timedelta(minutes=minutes)
    return Budget(steps=steps, deadline=deadline.timestamp())
