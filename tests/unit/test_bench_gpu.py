"""The benches that need a GPU: what can be shown without one."""

from __future__ import annotations

import pytest
import torch

from benches import gpu, kernels
from benches.kernels import Work, require_right, work
from benches.workload import OneLayer, frames, inputs_of, layers, noise, steps_per_frame
from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.ops import TORCH
from encodec_rt.streaming.plan import ResBlockSpec
from models import random_model, tiny_config
from tolerances import bound

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("bench", [gpu, kernels])
def test_bench_refuses_a_machine_without_a_gpu(
    bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main()  # type: ignore[attr-defined]


def test_the_products_of_a_frame_are_those_of_the_paper_model() -> None:
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig())
    products = {"encoder": 0, "decoder": 0}
    for spec in layers(model):
        products[spec.name.split(".")[0]] += work(spec, steps_per_frame(model, spec)).products
    # Counted by hand from kernel sizes, strides and channels; both directions mirror each other.
    assert products == {"encoder": 19_863_552, "decoder": 19_863_552}


def test_the_work_of_a_residual_block() -> None:
    spec = ResBlockSpec("encoder.layers.1", 32, 16, 3, 1, True)
    found = work(spec, 320)
    assert found.products == 491_520 + 163_840 + 327_680
    assert found.weight_bytes == 4 * (32 * 16 * 3 + 16 * 32 + 32 * 32)
    assert found.slot_bytes == 4 * (2 * 320 * 32 + 2 * 2 * 32)


def test_a_floor_is_the_longer_of_moving_and_multiplying() -> None:
    need = Work(products=1000, weight_bytes=400, slot_bytes=100)
    assert need.floor_us(2, bytes_per_s=1e6, products_per_s=1e9) == pytest.approx(600)
    assert need.floor_us(2, bytes_per_s=1e9, products_per_s=1e6) == pytest.approx(2000)


def test_a_layer_that_is_right_may_be_timed_and_no_other() -> None:
    model = random_model(tiny_config(pad_mode="constant"))
    spec = layers(model)[1]
    one = OneLayer(model, spec, TORCH, 2, CPU)
    assert one.x.shape == (2, steps_per_frame(model, spec), inputs_of(spec))
    assert require_right(one, "exact") < 1e-6
    weight = one.net.packed[spec.name][0]
    weight += 1e-3
    with pytest.raises(SystemExit, match=r"encoder\.layers\.1: error .* is not timed"):
        require_right(one, "exact")


def test_the_bench_is_as_strict_as_the_tests() -> None:
    for precision, dtype in (("exact", "float32"), ("fast", "tf32")):
        bounds = [bound(op, dtype) for op in ("conv1d", "conv_transpose1d", "resblock", "lstm")]
        assert max(bounds) == kernels.LARGEST_ERROR[precision]


def test_an_engine_with_other_codes_is_not_timed() -> None:
    codes = torch.arange(24).reshape(2, 3, 4)
    other = codes.clone()
    assert gpu.require_same_codes(codes, codes, "exact") == 0
    other[0, 0, 3] = 99
    with pytest.raises(SystemExit, match=r"16\.67 % of the frames have other codes"):
        gpu.require_same_codes(other, codes, "exact")
    assert gpu.require_same_codes(other, codes, "fast") == pytest.approx(1 / 6)


def test_noise_is_cut_into_frames() -> None:
    audio = noise(2, 3 * 320)
    assert torch.equal(torch.cat(frames(audio), 1), audio)
    assert torch.equal(audio, noise(2, 3 * 320))
    assert audio.abs().max() > 0.01
