"""encodec-rt info: what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from encodec_rt.cli.console import ModelOption
from encodec_rt.cli.container_info import container_facts
from encodec_rt.errors import InputError, WeightsError

if TYPE_CHECKING:
    from encodec_rt.bitstream.ecdc import EcdcHeader
    from encodec_rt.config import EncodecConfig
    from encodec_rt.model.encodec import EncodecModel

Facts = dict[str, str]
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".th")


def info(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help='Audio, .encodec, .ecdc, a checkpoint, or "default".'),
    ],
    model: ModelOption = "default",
) -> None:
    """Say what an audio file, a coded file or a checkpoint holds.

    --model is the model that an .ecdc file was made by, if that is not one of the paper's.
    """
    path = Path(source)
    if path.is_file() and path.suffix not in CHECKPOINT_SUFFIXES:
        with path.open("rb") as file:
            magic = file.read(64)
        if magic.startswith(b"ECDC"):
            facts = _ecdc_facts(path, model)
        elif magic.startswith(b"OggS") and b"EnCdHead" in magic:
            facts = container_facts(path)
        else:
            facts = _audio_facts(path)
    elif source == "default" or path.exists():
        facts = _checkpoint_facts(path)
    else:
        raise InputError(f"{source} does not exist")
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")


def _audio_facts(path: Path) -> Facts:
    from encodec_rt.audio import AudioReader

    with AudioReader(path) as reader:
        length = "unknown" if reader.duration_s is None else f"{reader.duration_s:.3f} s"
        return {
            "kind": "audio",
            "format": reader.description,
            "rate": f"{reader.rate_hz} Hz",
            "channels": str(reader.channels),
            "length": length,
        }


def _ecdc_facts(path: Path, model: str) -> Facts:
    from encodec_rt.bitstream.ecdc import read_header

    with path.open("rb") as file:
        header = read_header(file)
        held = path.stat().st_size - file.tell()
        config = _config_of(header, model)
        facts = {
            "kind": ".ecdc, version 0",
            "model": header.model,
            "samples": str(header.samples),
            "codebooks": str(header.codebooks),
            "coding": "language model" if header.language_model else "plain",
            "bytes of codes": str(held),
        }
        if config is None:
            return {**facts, "length": f"known with the model {header.model}; name it with --model"}
        seconds = header.samples / config.sampling_rate
        facts["length"] = f"{seconds:.3f} s at {config.sampling_rate} Hz"
        if seconds:
            facts["bandwidth"] = f"{held * 8e-3 / seconds:.2f} kbps"
        if not header.language_model:
            facts["state"] = _state(file, header, config)
    return facts


def _config_of(header: EcdcHeader, model: str) -> EncodecConfig | None:
    """The configuration of the model that a file names, if it is at hand."""
    from encodec_rt.config import PRESETS
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.model.identity import model_name

    if header.model in PRESETS:
        return PRESETS[header.model]
    try:
        found = EncodecModel.from_pretrained(model)
    except WeightsError:
        return None
    return found.config if model_name(found) == header.model else None


def _state(file: BinaryIO, header: EcdcHeader, config: EncodecConfig) -> str:
    from encodec_rt.bitstream.ecdc import EcdcReader
    from encodec_rt.errors import PacketError

    try:
        for _ in EcdcReader(file, header, config):
            pass
    except PacketError as error:
        return f"damaged: {error}"
    return "complete"


def _checkpoint_facts(path: Path) -> Facts:
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.model.identity import file_sha256, identify

    is_original = path.is_file() and path.suffix == ".th"
    folder = path.parent if path.is_file() and not is_original else path
    model = EncodecModel.from_pretrained(str(folder))
    config, identity = model.config, identify(model)
    facts = {"kind": "checkpoint", "name": identity.name, **_architecture(model)}
    facts["bandwidths"] = ", ".join(
        f"{bandwidth:g} kbps ({config.codebooks_for(bandwidth)})"
        for bandwidth in config.target_bandwidths
    )
    facts["sha256 of weights"] = identity.weights_sha256
    if path.is_file():
        facts["sha256 of file"] = file_sha256(path)
    return facts


def _architecture(model: EncodecModel) -> Facts:
    config = model.config
    frame_ms = 1000 * config.hop_length / config.sampling_rate
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "audio": f"{config.sampling_rate} Hz, {config.audio_channels} channel(s)",
        "frame": f"{config.hop_length} samples, {frame_ms:.2f} ms",
        "codebooks": f"{config.num_quantizers} of {config.codebook_size}",
        "padding": config.pad_mode,
        "parameters": f"{count / 1e6:.2f} million",
    }
