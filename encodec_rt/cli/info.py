"""encodec-rt info: what a file is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from encodec_rt.cli.console import PIPE, one_line, put
from encodec_rt.cli.container_info import container_facts
from encodec_rt.cli.facts import (
    Described,
    Facts,
    described_audio,
    described_codebooks,
    for_programs,
)
from encodec_rt.cli.file_options import about, warn
from encodec_rt.cli.options import ModelOption
from encodec_rt.errors import InputError, PacketError, WeightsError

if TYPE_CHECKING:
    from encodec_rt.bitstream.ecdc import EcdcHeader
    from encodec_rt.config import EncodecConfig
    from encodec_rt.model.encodec import EncodecModel

COMPLETE = "complete"
DEFAULT = "default"
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".th")


def info(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help='Audio, .encodec, .ecdc, a checkpoint, "default", or "-".'
        ),
    ],
    model: ModelOption = "default",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for programs.")
    ] = False,
) -> None:
    """Describe a file of audio, of codes or of weights.

    The exit status is 2 if the file is damaged. Audio is read to its end, because a header may give
    the wrong length. --model names the model that an .ecdc file was made with, if it is not one of
    the paper's.
    """
    with about(source):
        facts = _facts(source, model)
    if as_json:
        put(json.dumps(for_programs(facts)))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            put(f"{name:<{width}}  {one_line(value)}")
    if str(facts.get("state", COMPLETE)).startswith("damaged"):
        raise typer.Exit(2)


def _facts(source: str, model: str) -> Facts:
    path = Path(source)
    if source == PIPE:
        return _piped_facts(model)
    if source == DEFAULT or path.is_dir() or path.suffix in CHECKPOINT_SUFFIXES:
        facts = _checkpoint_facts(path)
    elif path.exists():
        magic = _magic(path) if path.is_file() else b""
        if magic.startswith(b"ECDC"):
            facts = _ecdc_facts(path, model)
        elif magic.startswith(b"OggS"):
            facts = _ogg_facts(path, magic)
        else:
            facts = _audio_facts(source)
    else:
        raise InputError(f"{source} does not exist")
    return facts


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _piped_facts(model: str) -> Facts:
    """Those of standard input; codes are copied to a temporary file for that."""
    import shutil
    import tempfile

    from encodec_rt.audio.source import standard_input

    given = standard_input()
    if isinstance(given, io.BufferedReader):
        head = given.peek(64)[:64]
    else:
        head = b""
        if given.seekable():
            head = given.read(64)
            given.seek(-len(head), io.SEEK_CUR)
    if not head.startswith((b"OggS", b"ECDC")) or (head[:1] == b"O" and b"EnCdHead" not in head):
        return _audio_facts(PIPE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as file:
            shutil.copyfileobj(given, file)
        return _facts(str(path), model)


def _audio_facts(source: str) -> Facts:
    from encodec_rt.audio import AudioReader

    with AudioReader(source) as reader:
        facts: Facts = {
            "kind": "audio",
            "format": reader.description,
            "rate": Described(f"{reader.rate_hz} Hz", {"rate_Hz": reader.rate_hz}),
            "channels": reader.channels,
        }
        for _ in reader.blocks(reader.rate_hz, 1):
            pass
        facts["length"] = Described(f"{reader.seconds:.3f} s", {"length_s": reader.seconds})
        facts |= {f"tag {name.lower()}": text for name, text in reader.tags.items()}
        facts["state"] = "damaged" if reader.damaged else COMPLETE
        warn(reader)
    return facts


def _ogg_facts(path: Path, head: bytes) -> Facts:
    """Those of an .encodec stream, which may come after others, or else of audio."""
    try:
        return container_facts(path)
    except PacketError:
        if b"EnCdHead" in head:
            raise
        return _audio_facts(str(path))


def _ecdc_facts(path: Path, model: str) -> Facts:
    from encodec_rt.bitstream.ecdc import read_header

    with path.open("rb") as file:
        header = read_header(file)
        held = path.stat().st_size - file.tell()
        config = _config_of(header, model)
        facts: Facts = {
            "kind": ".ecdc, version 0",
            "model": header.model,
            "samples": header.samples,
            "codebooks": header.codebooks,
            "coding": "language model" if header.language_model else "plain",
            "bytes of codes": held,
        }
        if config is None:
            unknown = f"known with the model {header.model}; name it with --model"
            return {**facts, "length": Described(unknown, {"length_s": None})}
        seconds = header.samples / config.sampling_rate
        rate_hz = config.sampling_rate
        facts["length"] = Described(f"{seconds:.3f} s at {rate_hz} Hz", {"length_s": seconds})
        if seconds:
            kbps = held * 8e-3 / seconds
            facts["bandwidth"] = Described(f"{kbps:.2f} kbps", {"bandwidth_kbps": kbps})
        if not header.language_model:
            facts["state"] = _state(file, header, config)
    return facts


def _config_of(header: EcdcHeader, model: str) -> EncodecConfig | None:
    """The configuration of the model that a file names, if it is available."""
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
    return COMPLETE


def _checkpoint_facts(path: Path) -> Facts:
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.model.identity import file_sha256, identify

    is_original = path.is_file() and path.suffix == ".th"
    folder = path.parent if path.is_file() and not is_original else path
    model = EncodecModel.from_pretrained(str(folder))
    config, identity = model.config, identify(model)
    facts: Facts = {"kind": "checkpoint", "name": identity.name, **_architecture(model)}
    books = {kbps: config.codebooks_for(kbps) for kbps in config.target_bandwidths}
    facts["bandwidths"] = Described(
        ", ".join(f"{kbps:g} kbps ({count})" for kbps, count in books.items()),
        {"bandwidths_kbps": list(books), "codebooks_at": list(books.values())},
    )
    facts["sha256 of encoder and codebooks"] = identity.codes_sha256
    facts["sha256 of weights"] = identity.weights_sha256
    if path.is_file():
        facts["sha256 of file"] = file_sha256(path)
    return facts


def _architecture(model: EncodecModel) -> Facts:
    config = model.config
    frame_ms = 1000 * config.hop_length / config.sampling_rate
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "audio": described_audio(config.sampling_rate, config.audio_channels),
        "frame": Described(
            f"{config.hop_length} samples, {frame_ms:.2f} ms", {"frame_samples": config.hop_length}
        ),
        "codebooks": described_codebooks(config.num_quantizers, config.codebook_size),
        "padding": config.pad_mode,
        "parameters": Described(f"{count / 1e6:.2f} million", {"parameters": count}),
    }
