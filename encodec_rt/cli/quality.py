"""encodec-rt quality: scores of decoded audio against its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import check_device, put, report
from encodec_rt.cli.options import DeviceOption, ModelOption
from encodec_rt.errors import InputError

if TYPE_CHECKING:
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.quality import Kind, Scores
    from encodec_rt.types import Audio


def quality(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="Audio of any kind.")],
    decoded: Annotated[
        Path | None,
        typer.Argument(metavar="DECODED", help="The decoded audio; without it, score the model."),
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    music: Annotated[bool, typer.Option("--music", help="Leave out the speech scores.")] = False,
    visqol: Annotated[
        bool, typer.Option("--visqol", help="Also compute ViSQOL, which is slow.")
    ] = False,
) -> None:
    """Score DECODED against ORIGINAL, or a model at its bandwidths."""
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.quality import score

    kind: Kind = "music" if music else "speech"
    rows: list[tuple[str, Scores]] = []
    if decoded is not None:
        rate = 48_000
        pair = _read(original, rate), _read(decoded, rate)
        rows.append((decoded.name, score(*pair, rate, kind=kind, visqol=visqol)))
    else:
        check_device(device)
        if not original.is_file():
            raise InputError(f"{original} does not exist")
        codec = EncodecModel.from_pretrained(model).to(device)
        rate = codec.config.sampling_rate
        audio = _read(original, rate)
        for kbps in codec.config.target_bandwidths:
            report(f"coding at {kbps:g} kbps")
            ours = _through(codec, audio, kbps)
            rows.append((f"{kbps:g} kbps", score(audio, ours, rate, kind=kind, visqol=visqol)))
    names = [name for name, value in rows[0][1].as_dict().items() if value is not None]
    width = max(len(label) for label, _ in rows)
    put(" ".join([" " * width, *names]))
    for label, scores in rows:
        values = scores.as_dict()
        cells = (f"{values[name]:>{len(name)}.3f}" for name in names)
        put(" ".join([f"{label:<{width}}", *cells]))


def _read(path: Path, rate: int) -> Audio:
    import numpy as np

    from encodec_rt.audio import AudioReader

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    with AudioReader(path) as reader:
        blocks = [block[0] for block in reader.blocks(rate, 1)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _through(model: EncodecModel, audio: Audio, kbps: float) -> Audio:
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        values = torch.from_numpy(audio).to(device)[None, None]
        values = values.expand(1, model.config.audio_channels, -1)
        decoded = model(values, bandwidth=kbps).audio_values
    mono: Audio = decoded[0].mean(0).cpu().numpy()
    return mono
