"""A causal model as ONNX files, checked by onnxruntime as they are written.

docs/onnx.md says what is in them and how they are run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encodec_rt.atomic import check_target, replacing
from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.export.graph import import_onnx
from encodec_rt.export.onnx_clip import clip_decoder, clip_encoder
from encodec_rt.export.onnx_step import decoder_step, encoder_step
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes

FILES = ("encoder_step.onnx", "decoder_step.onnx", "encoder_clip.onnx", "decoder_clip.onnx")
STATES = "primed.npz"
CHECK_FRAMES = 100


@dataclass(frozen=True)
class GraphCheck:
    """How one pair of graphs in onnxruntime compares with the project's own streams.

    Of ``codes`` codes ``different`` differ, and the audio agrees to ``audio_db``.
    """

    graphs: str
    codes: int
    different: int
    audio_db: float


def export_onnx(
    model: EncodecModel,
    folder: str | Path,
    *,
    bandwidth_kbps: float | None = None,
    half: bool = False,
    force: bool = False,
) -> list[GraphCheck]:
    """Write the four graphs and the states of a "primed" stream into ``folder``.

    The encoders output the codebooks of ``bandwidth_kbps``, by default the model's highest; the
    first of them are those of a lower bandwidth. ``half`` stores weights in float16; ``force``
    replaces existing files. Raises ConfigError for a model that is not causal
    or a wrong bandwidth, InputError for files that exist, and BackendUnavailable if onnx or
    onnxruntime is missing or computes something else.
    """
    import_onnx()
    _import_onnxruntime()
    config = model.config
    if not config.is_framewise:
        raise ConfigError(
            "this model is not causal frame by frame (centred convolutions, a norm over time, "
            "loudness normalisation or chunks); only causal models can be exported"
        )
    kbps = config.target_bandwidths[-1] if bandwidth_kbps is None else bandwidth_kbps
    books = config.codebooks_for(kbps)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, STATES):
        check_target(target / name, force=force)
    codec = Codec(model, backend="torch")
    meta = _meta(codec, books)
    built: tuple[Callable[[], Any], ...] = (
        lambda: encoder_step(model, books, meta, half=half),
        lambda: decoder_step(model, meta, half=half),
        lambda: clip_encoder(model, books, meta, half=half),
        lambda: clip_decoder(model, meta, half=half),
    )
    for name, build in zip(FILES, built, strict=True):
        with replacing(target / name, force=force) as part:
            part.write_bytes(build().SerializeToString())
    encoder, decoder = codec.packed.start_state("primed", books)
    with replacing(target / STATES, force=force) as part, part.open("wb") as file:
        np.savez(file, encoder=encoder.numpy(), decoder=decoder.numpy())
    reports = [_check_steps(codec, kbps, target), _check_clips(codec, kbps, target)]
    for report in reports:
        # With rounded weights different codes are expected; otherwise only near-ties may differ.
        if not half and (report.audio_db < 100 or report.different > report.codes // 100):
            raise BackendUnavailable(
                f"onnxruntime computes different {report.graphs} ({report}); do not use these files"
            )
    return reports


def _meta(codec: Codec, books: int) -> dict[str, str]:
    config = codec.config
    values = {
        "model": codec.name,
        "weights_sha256": codec.weights_sha256,
        "sampling_rate": config.sampling_rate,
        "hop_length": config.hop_length,
        "codebooks": books,
        "codebook_size": config.codebook_size,
        "decoder_lag": codec.packed.decoder_lag,
    }
    return {name: json.dumps(value).strip('"') for name, value in values.items()}


def _check_steps(codec: Codec, kbps: float, folder: Path) -> GraphCheck:
    encode, decode = (_session(folder / name) for name in FILES[:2])
    audio = _audio(codec)
    wanted = codec.stream_encoder(kbps).push(audio)
    heard = codec.stream_decoder(kbps).push(wanted)
    with np.load(folder / STATES) as states:
        state, decoder_state = states["encoder"], states["decoder"]
    hop, channels = codec.config.hop_length, codec.config.audio_channels
    codes, pcm = [], []
    for frame in audio.reshape(channels, -1, hop).swapaxes(0, 1):
        made, state = encode.run(["codes", "state_next"], {"pcm": frame, "state": state})
        codes.append(made)
    for row in wanted.astype(np.int64)[:, None]:
        out, decoder_state = decode.run(
            ["pcm", "state_next"], {"codes": row, "state": decoder_state}
        )
        pcm.append(out)
    result = np.concatenate(pcm, 1)[:, codec.packed.decoder_lag :]
    return _report("steps", wanted, np.concatenate(codes), heard, result)


def _check_clips(codec: Codec, kbps: float, folder: Path) -> GraphCheck:
    encode, decode = (_session(folder / name) for name in FILES[2:])
    audio = _audio(codec)[..., :-3]
    encoder, decoder = (
        codec.stream_encoder(kbps, start="exact"),
        codec.stream_decoder(kbps, start="exact"),
    )
    wanted = np.concatenate([encoder.push(audio), encoder.flush()])
    heard = np.concatenate([decoder.push(wanted), decoder.flush()], -1)
    (codes,) = encode.run(["codes"], {"pcm": np.atleast_2d(audio)})
    (pcm,) = decode.run(["pcm"], {"codes": wanted.astype(np.int64)})
    return _report("clips", wanted, codes, heard, pcm)


def _report(name: str, wanted: Codes, codes: Any, heard: Audio, pcm: Any) -> GraphCheck:
    reference = np.atleast_2d(heard).astype(np.float64)
    assert codes.shape == wanted.shape
    assert pcm.shape == reference.shape
    error = float(((pcm - reference) ** 2).sum())
    level = float((reference**2).sum())
    db = math.inf if error == 0 else 10 * math.log10(level / error)
    return GraphCheck(name, wanted.size, int((codes != wanted).sum()), db)


def _audio(codec: Codec) -> Audio:
    """Seeded noise whose level rises and falls, whole frames of it."""
    random = np.random.default_rng(0)
    config = codec.config
    shape = (config.audio_channels, CHECK_FRAMES * config.hop_length)
    swell = 0.2 * np.sin(np.linspace(0, 20, shape[1])) ** 2
    noise: Audio = (swell * np.cumsum(random.standard_normal(shape), 1) / 20).astype(np.float32)
    noise = np.clip(noise, -1, 1)
    return noise[0] if config.audio_channels == 1 else noise


def _session(path: Path) -> Any:
    runtime = _import_onnxruntime()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    return runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendUnavailable(
            "the export to ONNX is checked by onnxruntime; install encodec-rt[export]"
        ) from None
    return onnxruntime
