from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from encodec_rt.errors import InputError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import TRAINING_ONLY
from encodec_rt.training.curves import plot_curves, read_curves
from encodec_rt.training.export import export_weights
from encodec_rt.training.initialisation import initialise
from encodec_rt.training.presets import PRESETS


def started_model() -> EncodecModel:
    model = EncodecModel(PRESETS["smoke"].model)
    generator = torch.Generator().manual_seed(0)
    initialise(model, generator)
    for layer in model.quantizer.stages:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    return model.eval()


def test_exported_weights_are_small_and_give_the_models_audio(tmp_path: Path) -> None:
    model = started_model()
    export_weights(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not any(name.endswith(TRAINING_ONLY) for name in tensors)
    assert not any("parametrizations" in name for name in tensors)
    again = EncodecModel.from_pretrained(tmp_path)
    assert again.config == model.config
    audio = 0.1 * torch.randn(1, 1, 4_800, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.decoder(model.encoder(audio))
        got = again.decoder(again.encoder(audio))
    # Eleven bits of mantissa in every weight.
    assert float((got - wanted).norm() / wanted.norm()) < 5e-3


def test_curves_are_read_by_name_and_drawn(tmp_path: Path) -> None:
    rows = ["step,progress,minutes,name,value"]
    rows += [f"{step},0.1,0.2,si_sdr_db,{step / 10}" for step in range(5)]
    (tmp_path / "curves.csv").write_text("\n".join([*rows, "4,0.1,0.2,learning_rate,0.001"]))
    curves = read_curves(tmp_path / "curves.csv")
    assert curves["si_sdr_db"][3] == (3, 0.3)
    assert curves["learning_rate"] == [(4, 0.001)]
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step,name,value\nx,y,z\n"])
def test_a_file_without_curves_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(InputError, match=r"curve"):
        plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
