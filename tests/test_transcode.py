from __future__ import annotations

import importlib
import io
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from encodec_rt.bitstream import ecdc
from encodec_rt.bitstream.ecdc import EcdcReader, EcdcWriter, read_header
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, PacketError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from encodec_rt.transcode import bandwidth_for, decode_blocks, encode_blocks
from encodec_rt.types import Audio, Codes
from tests.support.contract import assert_codes_agree
from tests.support.models import random_model, snr_db, speech, tiny_config
from tests.support.tolerances import bound
from tests.support.upstream import upstream_twin

upstream_files = importlib.import_module("encodec.compress")

STREAM_DB = -20 * math.log10(bound("stream audio", "float32"))
MONO = random_model(tiny_config())
STEREO = random_model(
    tiny_config(
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.5,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )
)
MODELS = {"encodec_24khz": MONO, "encodec_48khz": STEREO}


def pieces(audio: Tensor, size: int) -> list[Audio]:
    return [audio[:, start : start + size].numpy() for start in range(0, audio.shape[1], size)]


def to_file(codec: Codec, name: str, audio: Tensor, bandwidth: float, size: int = 1000) -> bytes:
    file = io.BytesIO()
    with EcdcWriter(codec.config, name, codec.config.codebooks_for(bandwidth)) as writer:
        for block in encode_blocks(codec, pieces(audio, size), bandwidth_kbps=bandwidth):
            writer.write(block.codes, block.scale)
        writer.finish(file, audio.shape[1])
    return file.getvalue()


def from_file(codec: Codec, data: bytes, *, salvage: bool = False) -> Tensor:
    file = io.BytesIO(data)
    header = read_header(file)
    blocks = EcdcReader(file, header, codec.config, salvage=salvage)
    parts = list(decode_blocks(codec, blocks, codebooks=header.codebooks))
    return torch.from_numpy(np.concatenate(parts, axis=1))


def all_codes(config: EncodecConfig, data: bytes) -> Codes:
    file = io.BytesIO(data)
    blocks = list(EcdcReader(file, read_header(file), config))
    return np.concatenate([block.codes for block in blocks])


def assert_same_file(model: EncodecModel, audio: Tensor, data: bytes, wanted: bytes) -> None:
    """Byte for byte, unless a frame streamed in float32 fell on the other side of a near-tie."""
    if data == wanted:
        return
    ours, theirs = all_codes(model.config, data), all_codes(model.config, wanted)
    assert len(data) == len(wanted)
    assert assert_codes_agree(model, audio, ours, theirs) > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 7, 40, 396, 397, 400, 401, 2003])
@pytest.mark.parametrize("index", [0, 2])
def test_files_are_upstreams_byte_for_byte_and_sound_alike_both_ways(
    monkeypatch: pytest.MonkeyPatch, name: str, length: int, index: int
) -> None:
    model = MODELS[name]
    bandwidth = model.config.target_bandwidths[index]
    theirs = upstream_twin(model, name)
    theirs.set_target_bandwidth(bandwidth)
    monkeypatch.setitem(upstream_files.MODELS, name, lambda: theirs)
    audio = speech(model.config.audio_channels, length)
    codec = Codec(model)
    data = to_file(codec, name, audio, bandwidth)
    assert_same_file(model, audio, data, upstream_files.compress(theirs, audio, use_lm=False))
    ours = from_file(codec, data)
    wanted, _ = upstream_files.decompress(data)
    assert ours.shape == wanted.shape == audio.shape
    assert snr_db(wanted, ours) > STREAM_DB


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_audio_is_a_file_of_no_codes(model: EncodecModel) -> None:
    codec = Codec(model)
    bandwidth = model.config.target_bandwidths[0]
    data = to_file(codec, "x", torch.zeros(model.config.audio_channels, 0), bandwidth)
    assert from_file(codec, data).shape == (model.config.audio_channels, 0)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_salvaged_file_decodes_as_the_whole_one_does_up_to_the_cut(model: EncodecModel) -> None:
    codec = Codec(model)
    audio = speech(model.config.audio_channels, 2003)
    data = to_file(codec, "x", audio, model.config.target_bandwidths[-1])
    whole = from_file(codec, data)
    for cut in (len(data) - 1, len(data) - 30, len(data) // 2):
        part = from_file(codec, data[:cut], salvage=True)
        assert 0 < part.shape[1] < whole.shape[1]
        # A segment that the cut shortened sounds otherwise; all before it is the same.
        stride = model.config.chunk_stride
        same = part.shape[1] - 8 if stride is None else part.shape[1] // stride * stride
        assert snr_db(whole[:, :same], part[:, :same]) > STREAM_DB or same == 0


def test_memory_does_not_grow_with_the_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecdc, "_BLOCK_FRAMES", 64)
    codec = Codec(MONO)
    bandwidth = MONO.config.target_bandwidths[-1]
    piece = speech(1, 80).numpy()

    def peak(count: int) -> int:
        tracemalloc.start()
        with EcdcWriter(MONO.config, "x", 4) as writer:
            audio = itertools.repeat(piece, count)
            for block in encode_blocks(codec, audio, bandwidth_kbps=bandwidth):
                writer.write(block.codes)
            file = io.BytesIO()
            writer.finish(file, 80 * count)
        file.seek(0)
        blocks = EcdcReader(file, read_header(file), MONO.config)
        samples = sum(pcm.shape[1] for pcm in decode_blocks(codec, blocks, codebooks=4))
        assert samples == 80 * count
        most = tracemalloc.get_traced_memory()[1] - len(file.getvalue())
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(60) < 1.5 * peak(20)


@pytest.mark.parametrize("start", ["primed", "zero"])
def test_every_start_gives_all_frames_and_samples(start: Start) -> None:
    codec = Codec(MONO)
    bandwidth = MONO.config.target_bandwidths[-1]
    audio = speech(1, 1003)
    blocks = list(encode_blocks(codec, pieces(audio, 99), bandwidth_kbps=bandwidth, start=start))
    assert sum(len(block.codes) for block in blocks) == 126
    parts = decode_blocks(codec, blocks, codebooks=4, start=start)
    assert sum(part.shape[1] for part in parts) == 1003


def test_a_segment_model_has_no_start_to_choose() -> None:
    codec = Codec(STEREO)
    with pytest.raises(ConfigError, match="segments"):
        next(encode_blocks(codec, [], bandwidth_kbps=1.0, start="primed"))


def test_bandwidth_is_the_lowest_that_holds_the_codebooks() -> None:
    config = MONO.config
    assert [bandwidth_for(config, books) for books in (1, 2, 3, 4)] == [
        config.target_bandwidths[index] for index in (0, 1, 2, 2)
    ]
    with pytest.raises(PacketError, match="5 codebooks"):
        bandwidth_for(config, 5)
