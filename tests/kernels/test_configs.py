"""The rules that give a kernel its tile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch

from encodec_rt_kernels import configs
from encodec_rt_kernels.configs import MANY, Precision, Rules, Tile

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
CHANNELS = (1, 2, 3, 4, 8, 31, 32, 33, 64, 128, 256, 512)
RULES_OF_A_CODEC = [
    Rules(precision, few, chained)
    for precision in ("exact", "fast")
    for few in (False, True)
    for chained in (False, True)
]
RULES: list[Callable[..., Tile | None]] = [
    configs.conv1d,
    configs.conv_transpose1d,
    configs.resblock,
    configs.join,
    configs.lstm,
    configs.rvq_encode,
    configs.rvq_score,
    configs.conv1d_single,
    configs.conv1d_vector,
    configs.conv_transpose1d_vector,
    configs.lstm_vector,
]


def tiles() -> Iterator[Tile]:
    """A tile of every rule, over architectures, precisions and channels."""
    for arch in ARCHITECTURES:
        for wide in CHANNELS:
            for rules in RULES_OF_A_CODEC:
                yield configs.rvq_encode(arch, rules, wide, 16 * wide)
                for narrow in CHANNELS:
                    yield configs.conv1d(arch, rules, narrow, wide, 7)
                    yield configs.conv_transpose1d(arch, rules, narrow, wide)
                yield configs.resblock(arch, rules, min(wide, configs.FUSED_CHANNELS))
                yield configs.join(arch, rules, wide)
                yield configs.lstm(arch, rules, wide)
                yield configs.rvq_score(arch, rules, wide, 16 * wide)
                vectors = (
                    configs.conv1d_single(arch, rules, wide, 1, 7, 1, 1),
                    configs.conv1d_vector(arch, rules, wide, 512, 16),
                    configs.conv_transpose1d_vector(arch, rules, wide, 2),
                    configs.lstm_vector(arch, rules, wide),
                )
                yield from (tile for tile in vectors if tile is not None)


def test_every_size_is_a_power_of_two() -> None:
    for tile in tiles():
        for size in (tile.rows, tile.cols, tile.depth, tile.warps):
            assert size > 0
            assert size & (size - 1) == 0


def test_every_launch_says_whether_products_are_fused_with_sums() -> None:
    others = [configs.copy(90, MANY), configs.rvq_choose(90, MANY)]
    for options in (*others, *(tile.options for tile in tiles())):
        assert options["enable_fp_fusion"] is True


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_can_see_how_many_slots_or_frames_there_are(rule: Callable[..., Tile]) -> None:
    layer = {"arch", "rules", "inputs", "outputs", "taps", "width", "channels", "units", "size"}
    layer |= {"stride", "dilation"}
    assert set(inspect.signature(rule).parameters) <= layer


@pytest.mark.parametrize(("precision", "dot"), [("exact", "ieee"), ("fast", "tf32")])
def test_precision_names_the_arithmetic_of_products(precision: Precision, dot: str) -> None:
    rules = Rules(precision)
    assert configs.conv1d(90, rules, 64, 128, 8).dot == dot
    assert configs.lstm(90, rules, 512).dot == dot
    assert configs.resblock(90, rules, 32).dot == dot


def test_the_search_is_float32_in_every_precision() -> None:
    for rules in RULES_OF_A_CODEC:
        assert configs.rvq_encode(90, rules, 128, 1024).dot == "ieee"
        assert configs.rvq_score(90, rules, 128, 1024).dot == "ieee"


def test_a_fused_block_holds_all_channels_in_one_tile() -> None:
    for channels in range(1, configs.FUSED_CHANNELS + 1):
        assert configs.resblock(90, MANY, channels).cols >= channels


def test_a_vector_of_a_book_is_one_tile_deep() -> None:
    for width in (1, 5, 128, 130):
        assert configs.rvq_encode(90, MANY, width, 1024).depth >= width


def test_cards_with_less_shared_memory_get_a_shorter_pipeline() -> None:
    for small, large in ((86, 80), (120, 90)):
        less = configs.conv1d(small, Rules(few=True), 256, 512, 16)
        more = configs.conv1d(large, Rules(few=True), 256, 512, 16)
        assert less.stages < more.stages


@pytest.mark.parametrize(
    ("inputs", "outputs", "taps", "programs"),
    [(256, 512, 16, 256), (512, 128, 7, 112), (128, 512, 7, 128)],
)
def test_a_layer_of_one_row_is_a_matrix_that_fills_the_device(
    inputs: int, outputs: int, taps: int, programs: int
) -> None:
    tile = configs.conv1d_vector(90, Rules(few=True), inputs, outputs, taps)
    assert tile
    assert -(-outputs // tile.cols) * tile.splits == programs
    assert tile.splits * tile.depth >= inputs * taps > (tile.splits - 1) * tile.depth
    assert configs.conv1d_vector(90, MANY, inputs, outputs, taps) is None
    assert configs.conv1d_vector(90, Rules(few=True), 128, 256, 10) is None


def test_a_device_without_a_gpu_counts_as_8_0() -> None:
    assert configs.architecture(torch.device("cpu")) == 80


@pytest.mark.parametrize(
    ("inputs", "outputs", "taps", "splits"),
    [(256, 512, 16, 4), (512, 128, 7, 16), (128, 256, 10, 8), (64, 128, 8, 8), (32, 64, 4, 1)],
)
def test_a_deep_product_of_few_slots_is_shared_out_further(
    inputs: int, outputs: int, taps: int, splits: int
) -> None:
    tile = configs.conv1d(90, Rules(few=True), inputs, outputs, taps)
    assert tile.splits == splits
    assert -(-outputs // tile.cols) * splits <= configs.SPLIT_PROGRAMS


@pytest.mark.parametrize(
    ("inputs", "outputs", "taps", "splits"),
    [(256, 512, 16, 2), (512, 128, 7, 8), (128, 512, 7, 2), (128, 256, 10, 1), (512, 512, 1, 2)],
)
def test_a_layer_of_one_row_is_shared_out_for_many_slots_too(
    inputs: int, outputs: int, taps: int, splits: int
) -> None:
    tile = configs.conv1d(90, MANY, inputs, outputs, taps)
    assert (tile.rows, tile.splits) == (64 if splits > 1 else 32, splits)
    assert inputs * taps // tile.splits >= configs.ROW_PART_DEPTH
    assert configs.conv1d(90, Rules("fast"), inputs, outputs, taps).splits == 1


@pytest.mark.parametrize(
    ("outputs", "taps", "stride", "dilation"),
    [(2, 7, 1, 1), (1, 7, 2, 1), (1, 7, 1, 6), (1, 34, 1, 1)],
)
def test_a_window_that_takes_most_of_a_tile_is_left_to_the_product(
    outputs: int, taps: int, stride: int, dilation: int
) -> None:
    assert configs.conv1d_single(90, MANY, 32, 1, 7, 1, 1)
    assert configs.conv1d_single(90, MANY, 32, outputs, taps, stride, dilation) is None


def test_launches_are_chained_only_where_the_architecture_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chained = Rules(chained=True)
    assert not configs.lstm(90, chained, 512).options["launch_pdl"]
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    for arch in ARCHITECTURES:
        for options in (
            configs.lstm(arch, chained, 512).options,
            configs.rvq_choose(arch, chained),
            configs.copy(arch, chained),
        ):
            assert options["launch_pdl"] is options["CHAINED"] is (arch >= 90)
    assert not configs.lstm(90, MANY, 512).options["CHAINED"]
