"""The ONNX graphs in onnxruntime against the project's own streams."""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.export.onnx import FILES, STATES, export_onnx
from encodec_rt.streaming.codec import Codec
from tests.support.causal import CONFIGS, audio_of
from tests.support.contract import assert_codes_agree, offline_audio, offline_codes
from tests.support.models import random_model, snr_db, speech, tiny_config
from tests.support.tolerances import bound

AUDIO_DB = -20 * math.log10(bound("portable audio", "float32"))


@cache
def exported(name: str, folder: Path) -> tuple[Codec, list[Any], dict[str, Any]]:
    model = random_model(tiny_config(**{"books": (1, 2, 4), **CONFIGS[name]}))
    export_onnx(model, folder / name)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(folder / name / file), settings) for file in FILES]
    with np.load(folder / name / STATES) as states:
        return Codec(model, backend="torch"), sessions, dict(states)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_give_the_codes_and_the_audio_of_a_stream(name: str, folder: Path) -> None:
    codec, (encode, decode, _, _), states = exported(name, folder)
    kbps = codec.config.target_bandwidths[-1]
    audio = audio_of(codec, 30 * codec.config.hop_length)
    wanted = codec.stream_encoder(kbps).push(audio)
    state, codes = states["encoder"], []
    frames = np.atleast_2d(audio).reshape(codec.config.audio_channels, 30, -1)
    for frame in frames.swapaxes(0, 1):
        made, state = encode.run(["codes", "state_next"], {"pcm": frame, "state": state})
        codes.append(made)
    assert np.array_equal(np.concatenate(codes), wanted)
    heard = codec.stream_decoder(kbps).push(wanted)
    state, pcm = states["decoder"], []
    for row in wanted.astype(np.int64)[:, None]:
        out, state = decode.run(["pcm", "state_next"], {"codes": row, "state": state})
        pcm.append(out)
    result = np.concatenate(pcm, 1)[:, codec.packed.decoder_lag :]
    assert snr_db(np.atleast_2d(heard), result) >= AUDIO_DB


@pytest.mark.parametrize("name", CONFIGS)
def test_clips_of_any_length_are_the_offline_models(name: str, folder: Path) -> None:
    codec, (_, _, encode, decode), _ = exported(name, folder)
    model = codec.model
    for samples in (1, 7, 8, 31, 64, 250):
        audio = speech(codec.config.audio_channels, samples)
        wanted = offline_codes(model, audio)
        (codes,) = encode.run(["codes"], {"pcm": audio.numpy()})
        assert_codes_agree(model, audio, codes.astype(np.uint16), wanted)
        (pcm,) = decode.run(["pcm"], {"codes": wanted.astype(np.int64)})
        heard = offline_audio(model, wanted)
        assert pcm.shape == heard.shape
    assert snr_db(heard, pcm) >= AUDIO_DB


def test_a_decoder_takes_any_number_of_codebooks_and_leaves_out_absent_ones(folder: Path) -> None:
    codec, (_, decode, _, decode_clip), states = exported("plain", folder)
    kbps = codec.config.target_bandwidths[-1]
    codes = np.array([[3, 1, 4, 1]])
    for books in (1, 2, 3, 4):
        heard = codec.stream_decoder(kbps).push(codes[:, :books])
        absent = np.where(np.arange(4) < books, codes, -1)
        for given in (codes[:, :books], absent):
            (pcm,) = decode.run(["pcm"], {"codes": given, "state": states["decoder"]})
            assert snr_db(heard, pcm[0]) >= AUDIO_DB
        (few,), (masked,) = (
            decode_clip.run(["pcm"], {"codes": np.repeat(given, 9, 0)})
            for given in (codes[:, :books], absent)
        )
        assert np.array_equal(few, masked)


def test_lower_bandwidths_are_a_prefix_of_the_codes(folder: Path) -> None:
    codec, (encode, *_), states = exported("plain", folder)
    frame = audio_of(codec, codec.config.hop_length)
    (codes,) = encode.run(["codes"], {"pcm": frame[None], "state": states["encoder"]})
    for kbps, books in zip(codec.config.target_bandwidths, (1, 2, 4), strict=True):
        assert np.array_equal(codec.stream_encoder(kbps).push(frame), codes[:, :books])


def test_the_products_of_a_step_are_two_dimensional_gemms_over_constants(folder: Path) -> None:
    import onnx

    codec, _, _ = exported("plain", folder)
    for file in FILES[:2]:
        graph = onnx.load(folder / "plain" / file).graph
        constants = {item.name for item in graph.initializer}
        kinds = {node.op_type for node in graph.node}
        assert not kinds & {"Conv", "ConvTranspose", "LSTM", "MatMul", "Einsum"}
        gemms = [node for node in graph.node if node.op_type == "Gemm"]
        assert len(gemms) > len(codec.packed.encoder.plan)
        assert all({*node.input[1:]} <= constants for node in gemms)


def test_float16_graphs_compute_with_rounded_weights(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    with torch.no_grad():
        for stage in model.quantizer.stages:
            stage.codebook.embed.copy_(stage.codebook.embed.half().float())
    steps, clips = export_onnx(model, tmp_path, half=True)
    assert min(steps.audio_db, clips.audio_db) > 50
    whole = random_model(tiny_config())
    export_onnx(whole, tmp_path / "whole")
    sizes = [(at / FILES[0]).stat().st_size for at in (tmp_path, tmp_path / "whole")]
    assert sizes[0] < 0.9 * sizes[1]


def test_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only causal models"):
        export_onnx(random_model(tiny_config(normalize=True)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_what_is_not_installed_is_named_with_its_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendUnavailable, match=r"encodec-rt\[export\]"):
        export_onnx(random_model(tiny_config()), tmp_path)
