"""A causal model as one file for the WebAssembly codec (docs/web.md has its layout).

The file holds the layers as data and plain matrices; packing them is up to the reader. A tensor is
written in float16 if that loses nothing, which makes the embedded model's file as small as its
checkpoint.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError
from encodec_rt.export.products import products
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import identify
from encodec_rt.streaming.codec import MAX_CODEBOOK_SIZE
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    ResBlockSpec,
    output_lag,
    plan,
    start_frames,
)
from encodec_rt.streaming.weights import PRIME_FRAMES, layer_weights

MAGIC = 0x57545245
VERSION = 1
HEADER = struct.Struct("<16I")
RECORD = struct.Struct("<8I")

MAX_SIDE = 1 << 24
MAX_LAYERS = 1024
MAX_STATE_FLOATS = 1 << 24
MAX_START_FRAMES = 1 << 12

_PAD_MODES = ("constant", "reflect", "replicate")
_FOLDED = 2.0**-22
"""The relative change of a weight, stored folded in float16, by folding its weight norm again."""


def blob(model: EncodecModel, *, half: bool = False) -> bytes:
    """The file of ``model``; with ``half`` every matrix and codebook is rounded to float16.

    Biases stay in float32. Raises ConfigError, with the reason, for a model that the codec cannot
    run: one that is not causal frame by frame, or beyond a limit of the format.
    """
    config = model.config
    if not config.is_framewise:
        raise ConfigError(
            "this model is not causal frame by frame (centred convolutions, a norm over time, "
            "loudness normalisation or chunks); only causal models can be exported"
        )
    encoder, decoder = plan(model.encoder, "encoder"), plan(model.decoder, "decoder")
    first = (
        start_frames(encoder, config.pad_mode, config.hop_length),
        start_frames(decoder, config.pad_mode, 1),
    )
    silent = max(PRIME_FRAMES, *first)
    for specs in (encoder, decoder):
        _check_state(specs)
    _check_limit("codebook_size", config.codebook_size, MAX_CODEBOOK_SIZE)
    _check_limit("layers", max(len(encoder), len(decoder)), MAX_LAYERS)
    _check_limit("frames before the first output", silent, MAX_START_FRAMES)
    meta = json.dumps(_meta(model)).encode()
    header = HEADER.pack(
        MAGIC, VERSION, len(meta), len(encoder), len(decoder), config.audio_channels,
        config.hop_length, config.hidden_size, config.num_quantizers, config.codebook_size,
        _PAD_MODES.index(config.pad_mode), *first, output_lag(decoder), silent, 0,
    )  # fmt: skip
    parts = [header, _padded(meta)]
    parts += [RECORD.pack(*_record(spec)) for spec in (*encoder, *decoder)]
    for spec in (*encoder, *decoder):
        for matrix, bias in products(spec, layer_weights(model, spec)):
            parts += [_tensor(matrix, half=half), _tensor(bias, half=False)]
    parts += [_tensor(stage.codebook.embed, half=half) for stage in model.quantizer.stages]
    return b"".join(parts)


def write_blob(
    model: EncodecModel, path: str | Path, *, half: bool = False, force: bool = False
) -> int:
    """Write the file of ``model``; returns its size in bytes. Raises as ``blob`` and InputError."""
    content = blob(model, half=half)
    with replacing(path, force=force) as part:
        part.write_bytes(content)
    return len(content)


def _meta(model: EncodecModel) -> dict[str, object]:
    config, identity = model.config, identify(model)
    return {
        "model": identity.name,
        "codes_sha256": identity.codes_sha256,
        "weights_sha256": identity.weights_sha256,
        "sampling_rate": config.sampling_rate,
        "bandwidths_kbps": list(config.target_bandwidths),
        "codebooks": [config.codebooks_for(kbps) for kbps in config.target_bandwidths],
        "codebook_bits": config.codebook_nbits,
    }


@dataclass(frozen=True)
class _Sides:
    kind: int
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    hidden: int = 0
    option: int = 0


def _record(spec: LayerSpec) -> tuple[int, ...]:
    """kind, inputs, outputs, kernel, stride, dilation, hidden, option."""
    if isinstance(spec, ConvSpec):
        sides = _Sides(
            0, spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.dilation,
            option=spec.elu,
        )  # fmt: skip
    elif isinstance(spec, ConvTransposeSpec):
        sides = _Sides(
            1, spec.in_channels, spec.out_channels, spec.kernel, spec.stride,
            option=spec.trim_left,
        )  # fmt: skip
    elif isinstance(spec, ResBlockSpec):
        sides = _Sides(
            2, spec.channels, spec.channels, spec.kernel, 1, spec.dilation, spec.hidden,
            spec.conv_shortcut,
        )  # fmt: skip
    else:
        sides = _Sides(3, spec.channels, spec.channels, hidden=spec.layers)
    reach = sides.kernel * sides.dilation
    for name, value in (("channels", max(sides.inputs, sides.outputs)), ("kernel", reach)):
        _check_limit(f"{name} of {spec.name}", value, MAX_SIDE)
    return (
        sides.kind, sides.inputs, sides.outputs, sides.kernel, sides.stride, sides.dilation,
        sides.hidden, int(sides.option),
    )  # fmt: skip


def _tensor(values: Tensor, *, half: bool) -> bytes:
    values = values.detach().float().contiguous()
    rounded = values.half()
    if not half:
        error = (rounded.float() - values).abs()
        half = bool((error <= _FOLDED * values.abs()).all())
    if half and not bool(rounded.isfinite().all()):
        raise ConfigError("a weight is too large for float16; export this model in float32")
    numbers = rounded.numpy().astype("<f2") if half else values.numpy().astype("<f4")
    return struct.pack("<I", half) + _padded(numbers.tobytes())


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _check_state(specs: tuple[LayerSpec, ...]) -> None:
    floats = sum(-(-math.prod(shape) // 32) * 32 for spec in specs for shape in spec.state.values())
    _check_limit("numbers of state per stream", floats, MAX_STATE_FLOATS)


def _check_limit(name: str, value: int, most: int) -> None:
    if value > most:
        raise ConfigError(f"{value} {name}; the WebAssembly codec takes up to {most}")
