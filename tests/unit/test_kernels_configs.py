"""The rules that give a kernel its tile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch

from encodec_rt_kernels import configs
from encodec_rt_kernels.configs import Precision, Tile

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
CHANNELS = (1, 2, 3, 4, 8, 31, 32, 33, 64, 128, 256, 512)
RULES: list[Callable[..., Tile]] = [
    configs.conv1d,
    configs.conv_transpose1d,
    configs.resblock,
    configs.join,
    configs.lstm,
    configs.rvq_encode,
]


def tiles() -> Iterator[Tile]:
    """A tile of every rule, over architectures, precisions and channels."""
    for arch in ARCHITECTURES:
        for wide in CHANNELS:
            yield configs.rvq_encode(arch, wide, 16 * wide)
            for precision in ("exact", "fast"):
                for narrow in CHANNELS:
                    yield configs.conv1d(arch, precision, narrow, wide, 7)
                    yield configs.conv_transpose1d(arch, precision, narrow, wide)
                yield configs.resblock(arch, precision, min(wide, configs.FUSED_CHANNELS))
                yield configs.join(arch, precision, wide)
                yield configs.lstm(arch, precision, wide)


def test_every_size_is_a_power_of_two() -> None:
    for tile in tiles():
        for size in (tile.rows, tile.cols, tile.depth, tile.warps):
            assert size > 0
            assert size & (size - 1) == 0


def test_every_launch_says_whether_products_are_fused_with_sums() -> None:
    for options in (configs.COPY, *(tile.options for tile in tiles())):
        assert options["enable_fp_fusion"] is True


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_can_see_how_many_slots_or_frames_there_are(rule: Callable[..., Tile]) -> None:
    layer = {"arch", "precision", "inputs", "outputs", "taps", "width", "channels", "units", "size"}
    assert set(inspect.signature(rule).parameters) <= layer


@pytest.mark.parametrize(("precision", "dot"), [("exact", "ieee"), ("fast", "tf32")])
def test_precision_names_the_arithmetic_of_products(precision: Precision, dot: str) -> None:
    assert configs.conv1d(90, precision, 64, 128, 8).dot == dot
    assert configs.lstm(90, precision, 512).dot == dot
    assert configs.resblock(90, precision, 32).dot == dot


def test_the_search_is_float32_in_every_precision() -> None:
    assert "precision" not in inspect.signature(configs.rvq_encode).parameters
    assert configs.rvq_encode(90, 128, 1024).dot == "ieee"


def test_a_fused_block_holds_all_channels_in_one_tile() -> None:
    for channels in range(1, configs.FUSED_CHANNELS + 1):
        assert configs.resblock(90, "exact", channels).cols >= channels


def test_a_vector_of_a_book_is_one_tile_deep() -> None:
    for width in (1, 5, 128, 130):
        assert configs.rvq_encode(90, width, 1024).depth >= width


def test_cards_with_less_shared_memory_get_a_shorter_pipeline() -> None:
    for small, large in ((86, 80), (120, 90)):
        less = configs.conv1d(small, "exact", 256, 512, 16)
        more = configs.conv1d(large, "exact", 256, 512, 16)
        assert less.stages < more.stages


def test_a_device_without_a_gpu_counts_as_8_0() -> None:
    assert configs.architecture(torch.device("cpu")) == 80
