"""encodec-rt train lm: code tables and a language model for the codes of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import check_device, report
from encodec_rt.cli.options import DeviceOption, ModelOption, ThreadsOption
from encodec_rt.errors import ConfigError

if TYPE_CHECKING:
    from encodec_rt.bitstream.coding import CodeTables
    from encodec_rt.types import Codes

RESTART_S = 8.0
"""How often the context restarts in a file, and when measuring held-out speech."""


def lm(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder for the codes and what is trained.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="FOLDER", help="The packed audio that encodec-rt data index made."
        ),
    ],
    model: ModelOption = "default",
    minutes: Annotated[
        float, typer.Option("--minutes", help="CPU time to train for; time on a GPU.")
    ] = 60.0,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Pieces of four seconds per step.")
    ] = 2,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from", metavar="FILE", help="A language model of these codes to continue from."
        ),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="The highest; use less to continue a model.")
    ] = 3e-3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Train for this many steps instead.")
    ] = None,
    hours: Annotated[float, typer.Option("--hours", help="Speech to train on.")] = 10.0,
    voices: Annotated[
        int,
        typer.Option(
            "--voices",
            min=0,
            help="Train on the speech so many times more, at other speeds, levels and tones of "
            "voice.",
        ),
    ] = 2,
    widths: Annotated[
        str | None,
        typer.Option("--widths", help="Units that each layer adds, such as 96,64,64,64."),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Train code tables and a language model of the codes.

    RUN gets code_tables.safetensors and code_lm.safetensors, to be copied into the model's folder,
    and report.json with the bits that each codebook takes on held-out speech. If training is
    interrupted, the same command goes on with it.
    """
    import numpy as np
    import torch

    from encodec_rt.bitstream.coding import CodeTables
    from encodec_rt.bitstream.container import StreamHeader
    from encodec_rt.lm.integer import IntegerLm
    from encodec_rt.lm.trainable import lm_config
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.training.codes import coded_clips
    from encodec_rt.training.language_model import LmRecipe, bits_per_code, train_lm

    amounts = {"--minutes": minutes, "--hours": hours, "--learning-rate": learning_rate}
    for name, amount in amounts.items():
        if amount <= 0:
            raise ConfigError(f"{name} {amount:g}; more than 0 is needed")
    check_device(device)
    torch.set_num_threads(threads)
    codec = Codec.load(model)
    config, weights = codec.config, bytes.fromhex(codec.codes_sha256)
    header = StreamHeader.for_model(
        config, config.num_quantizers, start="exact", codes_sha256=weights
    )
    shape = lm_config(header.layers, config.codebook_size, _numbers(widths))
    before = None if start_from is None else IntegerLm.load(start_from)
    if before is not None and before.codes_sha256 != weights:
        raise ConfigError(f"{start_from} is for the codes of another model; omit --start-from")
    clips = coded_clips(codec, data, run, hours=hours, voices=voices, device=device, report=report)
    tables = CodeTables.from_codes(np.concatenate(clips.train), config.codebook_size, weights)
    tables.save(run / "code_tables.safetensors")

    shown = -1

    def on_progress(share: float, bits: float) -> None:
        nonlocal shown
        if int(20 * share) > shown:
            shown = int(20 * share)
            report(f"{100 * share:.0f} %: {bits:.3f} bits per code")

    recipe = LmRecipe(minutes=minutes, steps=steps, batch=batch, learning_rate=learning_rate)
    checkpoint = run / f"lm-checkpoint-{codec.codes_sha256[:8]}.safetensors"
    if checkpoint.exists():
        report(f"goes on from {checkpoint.name}" + (", not from --start-from" if before else ""))
    trained = train_lm(
        clips.train,
        shape,
        recipe,
        on_progress,
        start_from=before,
        device=device,
        checkpoint=checkpoint,
    )
    found = trained.export(weights)
    found.save(run / "code_lm.safetensors")
    checkpoint.unlink(missing_ok=True)
    frames = round(RESTART_S * config.sampling_rate / config.hop_length)
    bits = bits_per_code(found, clips.held_out, frames)
    measured = {
        "model": codec.name,
        "lm_sha256": found.sha256.hex(),
        "bytes": (run / "code_lm.safetensors").stat().st_size,
        "bits_per_code": [round(float(value), 4) for value in bits],
        "table_bits_per_code": [round(value, 4) for value in _table_bits(tables, clips.held_out)],
    }
    (run / "report.json").write_text(json.dumps(measured, indent=1) + "\n")
    ends = np.cumsum(header.layers)
    for end in ends:
        share = 1 - bits[:end].mean() / header.bits
        report(f"{header.kbps(int(end)):g} kbps: {100 * share:.1f} % smaller")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ConfigError(f"widths {text!r}; give whole numbers separated by commas") from None


def _table_bits(tables: CodeTables, clips: Sequence[Codes]) -> list[float]:
    import numpy as np

    codes = np.concatenate(clips)
    return [
        float(np.log2(65536 / row[codes[:, book]].astype(float)).mean())
        for book, row in enumerate(tables.counts)
    ]
