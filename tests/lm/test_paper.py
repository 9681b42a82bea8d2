from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from encodec_rt.bitstream.ecdc import EcdcReader, EcdcWriter, read_header
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import PacketError, WeightsError
from encodec_rt.lm.paper import PaperDecoder, PaperEncoder, PaperLm
from encodec_rt.types import Codes
from tests.support.models import random_model, speech, tiny_config
from tests.support.upstream import encodec, upstream_twin

upstream_files = importlib.import_module("encodec.compress")
upstream_model = importlib.import_module("encodec.model")


def framewise() -> EncodecConfig:
    return tiny_config()


def chunked() -> EncodecConfig:
    return tiny_config(
        audio_channels=2, normalize=True, chunk_length_s=0.5, overlap=0.01,
        norm_type="time_group_norm", use_causal_conv=False,
    )  # fmt: skip


def language_model(config: EncodecConfig, seed: int = 0) -> encodec.model.LMModel:
    """One of the original's classes, small and of random weights that predict something."""
    torch.manual_seed(seed)
    # A past shorter than the clips, so that it is also seen to end.
    lm = upstream_model.LMModel(
        config.num_quantizers, config.codebook_size, dim=32, num_layers=2,
        past_context=int(3.5 * config.frame_rate),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for linear in lm.linears:
            linear.weight.mul_(4)
    return lm


@pytest.fixture(params=["framewise", "chunked"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[EncodecConfig, encodec.EncodecModel, Tensor, PaperLm, str]:
    torch.set_num_threads(1)
    config = framewise() if request.param == "framewise" else chunked()
    model = random_model(config)
    name = "encodec_24khz" if request.param == "framewise" else "encodec_48khz"
    theirs = upstream_twin(model, name)
    theirs.set_target_bandwidth(config.target_bandwidths[1])
    lm = language_model(config)
    torch.save(lm.state_dict(), tmp_path / "lm.th")
    theirs.get_lm_model = lambda: lm
    wav = speech(config.audio_channels, 3601 if request.param == "framewise" else 993)
    return config, theirs, wav, PaperLm.load(tmp_path / "lm.th", config), name


def encoded(
    theirs: encodec.EncodecModel, wav: Tensor
) -> Iterator[tuple[Codes, None] | tuple[Codes, float]]:
    with torch.no_grad():
        for codes, scale in theirs.encode(wav[None]):
            yield codes[0].t().numpy().astype(np.uint16), None if scale is None else scale.item()


def test_files_are_byte_for_byte_the_originals_and_decode_to_their_codes(
    case: tuple[EncodecConfig, encodec.EncodecModel, Tensor, PaperLm, str],
) -> None:
    config, theirs, wav, lm, name = case
    wanted = list(encoded(theirs, wav))
    file = io.BytesIO()
    with EcdcWriter(config, name, 2, coder=lambda: PaperEncoder(lm)) as writer:
        for codes, scale in wanted:
            if config.is_framewise:
                for start in range(0, len(codes), 7):
                    writer.write(codes[start : start + 7])
            else:
                writer.write(codes, scale)
        writer.finish(file, wav.shape[1])
    assert file.getvalue() == upstream_files.compress(theirs, wav, use_lm=True)
    file.seek(0)
    header = read_header(file)
    assert header.language_model
    blocks = list(EcdcReader(file, header, config, decoder=PaperDecoder(lm)))
    found = np.concatenate([block.codes for block in blocks])
    assert np.array_equal(found, np.concatenate([codes for codes, _ in wanted]))
    if config.is_framewise:
        assert sum(block.samples for block in blocks) == wav.shape[1]
    else:
        assert [block.scale for block in blocks] == [scale for _, scale in wanted]


def test_a_file_that_ends_early_is_refused_or_salvaged(
    case: tuple[EncodecConfig, encodec.EncodecModel, Tensor, PaperLm, str],
) -> None:
    config, theirs, wav, lm, _ = case
    data = upstream_files.compress(theirs, wav, use_lm=True)
    cut = io.BytesIO(data[: len(data) * 2 // 3])
    header = read_header(cut)
    with pytest.raises(PacketError, match="ends before"):
        list(EcdcReader(cut, header, config, decoder=PaperDecoder(lm)))
    cut.seek(0)
    reader = EcdcReader(cut, read_header(cut), config, decoder=PaperDecoder(lm), salvage=True)
    blocks = list(reader)
    assert reader.truncated
    assert sum(len(block.codes) for block in blocks) > 0
    wanted = np.concatenate([codes for codes, _ in encoded(theirs, wav)])
    found = np.concatenate([block.codes for block in blocks])
    assert np.array_equal(found, wanted[: len(found)])


def test_without_a_model_or_with_another_one_it_is_refused(tmp_path: Path) -> None:
    config = framewise()
    lm = language_model(config)
    torch.save(lm.state_dict(), tmp_path / "lm.th")
    with pytest.raises(WeightsError, match="the codec has 4 of 64"):
        PaperLm.load(tmp_path / "lm.th", tiny_config(codebook_size=64))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.th")
    with pytest.raises(WeightsError, match="not a language model"):
        PaperLm.load(tmp_path / "other.th", config)
    state = lm.state_dict()
    del state["transformer.layers.1.norm1.weight"]
    torch.save(state, tmp_path / "part.th")
    with pytest.raises(WeightsError, match="does not fit"):
        PaperLm.load(tmp_path / "part.th", config)
