"""The tile of every kernel, computed from the layer's shape; nothing is tuned at run time.

A rule sees the architecture, the layer's own sizes and the codec's ``Rules``, never the number of
slots or frames, so a slot's result has the same bits whatever its neighbours are. ``make aot``
compiles exactly the tiles that these rules choose for the 24 kHz model.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from encodec_rt_kernels.tiles import MANY as MANY
from encodec_rt_kernels.tiles import Options, launch_options
from encodec_rt_kernels.tiles import Precision as Precision
from encodec_rt_kernels.tiles import Rules as Rules
from encodec_rt_kernels.tiles import Tile as Tile


def copy(arch: int, rules: Rules) -> Options:
    """Launch options of a kernel that copies, gathers or sums, and multiplies nothing."""
    return launch_options(4, 1, rules.chains(arch))


COPY_BLOCK = 1024
"""Elements of state that a program of ``commit`` copies."""

SUM_BLOCK = 128
"""Elements per program of the kernel that adds up the parts of split products."""

CARRY_BLOCK = 256
"""Elements of context that a program copies at a time."""

FUSED_CHANNELS = 64
"""Widest residual block computed in one launch; in a wider one each program would have to read too
many weights."""

DEEP_CHANNELS = 256
"""Layers at least this wide have only a few rows per slot, and megabytes of weights."""

SPLIT_DEPTH = 256
"""Products at least this deep are split if ``Rules.few``, or if a slot has only one row."""

LONGEST_DEPTH = 1280
"""Products at least this deep have few rows per slot, so they get smaller tiles unless split."""

SPLIT_PROGRAMS = 128
"""Most programs that a split layer is spread over: the 132 multiprocessors of an H100, rounded
down to a power of two."""

PART_DEPTH = 64
"""Minimum depth of a part; a shallower one would cost about as much in writing and reading partial
sums as in products."""

ROW_PROGRAMS = 16
"""Most programs per tile of rows in a layer with one row per slot, for many slots; 0 disables the
split."""

ROW_PART_DEPTH = 256
"""Minimum depth of a part there: its partial sums are written and read for every slot."""

TABLE_BOOKS = 8
"""Number of codebooks that have tables: 4 MiB for each pair of the paper's codebooks."""

TRANSPOSED_CODEBOOKS = True
"""Whether the search for many slots reads transposed codebooks."""

VECTOR_CHANNELS = 512
"""Layers at least this wide have one row per slot: matrix-vector products, for few slots."""

VECTOR_DEPTH = 512
"""Most rows of a matrix, of 16 columns, that one program holds in registers."""

SINGLE_CHANNELS = 64
"""Most input channels of a one-output layer that the specialised kernel takes."""


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as one number, such as 90 for 9.0; 80 for a device that is not a GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _power_of_two(size: int, lowest: int, highest: int) -> int:
    return max(lowest, min(highest, 1 << (size - 1).bit_length()))


def _roomy(arch: int) -> bool:
    """Whether a program can have more than 99 KiB of shared memory."""
    return arch in (80, 90, 100, 103)


def conv1d(arch: int, rules: Rules, inputs: int, outputs: int, taps: int) -> Tile:
    """Tile of a convolution from ``inputs`` to ``outputs`` channels.

    For few slots, narrow tiles spread the megabytes of weights of a deep layer over many programs,
    and a deep pipeline keeps enough bytes in flight. The widest layers have one row per slot, so
    even many slots make few programs; in float32 they are split for many slots too.
    """
    # Not in TF32: smaller tiles keep the tensor cores busier.
    exact = rules.precision == "exact"
    one_row = exact and ROW_PROGRAMS > 0 and max(inputs, outputs) >= VECTOR_CHANNELS
    tile = _product(arch, rules, inputs, outputs, taps, in_parts=one_row)
    programs, part = (SPLIT_PROGRAMS, PART_DEPTH) if rules.few else (ROW_PROGRAMS, ROW_PART_DEPTH)
    if inputs * taps < SPLIT_DEPTH or not (rules.few or one_row):
        return tile
    most = programs // -(-outputs // tile.cols)
    splits = max(1, min(most, inputs * taps // part))
    return replace(tile, splits=1 << (splits.bit_length() - 1))


def _vector(arch: int, rules: Rules, cols: int, depth: int, warps: int, splits: int = 1) -> Tile:
    """Tile of a matrix-vector product: the part of the matrix that a program keeps in registers."""
    return Tile(1, cols, depth, warps, 1, "ieee", rules.chains(arch), splits)


def conv1d_vector(arch: int, rules: Rules, inputs: int, outputs: int, taps: int) -> Tile | None:
    """Tile of a convolution computed as matrix-vector products, or None where it is not.

    Float32 in both precisions. The depth is halved if there would be too few programs to read at
    the full speed of the memory.
    """
    if not rules.few or max(inputs, outputs) < VECTOR_CHANNELS:
        return None
    cols, depth = 16, VECTOR_DEPTH
    if -(-outputs // cols) * -(-inputs * taps // depth) < SPLIT_PROGRAMS:
        depth //= 2
    return _vector(arch, rules, cols, depth, 4, -(-inputs * taps // depth))


def conv_transpose1d_vector(arch: int, rules: Rules, inputs: int, taps: int) -> Tile | None:
    """The same for a transposed convolution of two taps."""
    if not rules.few or taps != 2 or not VECTOR_CHANNELS <= inputs <= VECTOR_DEPTH:
        return None
    return _vector(arch, rules, 16, _power_of_two(inputs, 16, VECTOR_DEPTH), 8)


def lstm_vector(arch: int, rules: Rules, units: int) -> Tile | None:
    """The same for an LSTM step; ``cols`` counts units, each with its four gates."""
    if not rules.few or units > VECTOR_DEPTH:
        return None
    return _vector(arch, rules, 4, _power_of_two(units, 16, VECTOR_DEPTH), 8)


def conv1d_single(
    arch: int, rules: Rules, inputs: int, outputs: int, taps: int, stride: int, dilation: int
) -> Tile | None:
    """Tile of a convolution with one output, or None; ``cols`` counts taps, ``depth`` channels.

    ``rows`` counts inputs: they yield ``rows - (taps - 1) * dilation`` outputs.
    """
    rows, past = 16 if rules.few else 64, (taps - 1) * dilation
    if outputs != 1 or inputs > SINGLE_CHANNELS or stride != 1 or 2 * past > rows:
        return None
    cols, depth = _power_of_two(taps, 8, 64), _power_of_two(inputs, 16, SINGLE_CHANNELS)
    return Tile(rows, cols, depth, 4, 1, "ieee", rules.chains(arch))


def _product(
    arch: int, rules: Rules, inputs: int, outputs: int, taps: int, *, in_parts: bool = False
) -> Tile:
    """The tile before any split; ``in_parts`` if it will be split although there are many slots."""
    deep, exact = max(inputs, outputs) >= DEEP_CHANNELS, rules.precision == "exact"
    roomy = _roomy(arch)
    if rules.few:
        most = (128 if exact else 64) if deep else 32
        return Tile(
            # A tensor core always multiplies 16 rows, however many of them are used.
            rows=8 if exact else 16,
            cols=_power_of_two(outputs, 16, 16),
            depth=_power_of_two(inputs * taps, 16, most),
            warps=4,
            stages=4 if roomy else 3,
            dot=rules.dot,
            chained=rules.chains(arch),
        )
    longest = inputs * taps >= LONGEST_DEPTH and not in_parts
    # With two stages Triton 3.7.1 runs out of registers, and spills, in wide layers of three taps
    # and in split products.
    short = exact and not (deep and taps == 3) and not in_parts
    return Tile(
        rows=64 if roomy and not longest else 32,
        cols=_power_of_two(outputs, 16, 32 if longest and outputs <= 128 else 64),
        depth=_power_of_two(inputs * taps, 16, 32),
        warps=4,
        stages=3 if roomy and not short else 2,
        dot=rules.dot,
        chained=rules.chains(arch),
    )


def conv_transpose1d(arch: int, rules: Rules, inputs: int, width: int) -> Tile:
    """Tile of a transposed convolution to ``width`` = stride * channels outputs per input step."""
    return _product(arch, rules, inputs, width, 2)


def resblock(arch: int, rules: Rules, channels: int) -> Tile:
    """Tile of a residual block computed in one launch."""
    return Tile(
        rows=32 if not rules.few else 8 if rules.precision == "exact" else 16,
        cols=_power_of_two(channels, 16, FUSED_CHANNELS),
        depth=_power_of_two(channels, 16, 32),
        warps=4,
        stages=3 if _roomy(arch) and (rules.few or rules.precision == "fast") else 2,
        dot=rules.dot,
        chained=rules.chains(arch),
    )


def middle(hidden: int) -> int:
    """Number of a residual block's hidden channels that are in registers at a time."""
    return _power_of_two(hidden, 16, 32)


def join(arch: int, rules: Rules, channels: int) -> Tile:
    """Tile of the product that computes both 1x1 convolutions of a residual block."""
    return _product(arch, rules, channels, channels, 2)


def lstm(arch: int, rules: Rules, units: int) -> Tile:
    """Tile of an LSTM step; ``cols`` counts units, each with its four gates."""
    rows = 64 if _roomy(arch) else 32
    return Tile(
        rows=16 if rules.few else rows,
        cols=8 if rules.few else 16,
        depth=_power_of_two(units, 16, 64 if rules.few else 32),
        warps=4,
        stages=3 if _roomy(arch) else 2,
        dot=rules.dot,
        chained=rules.chains(arch),
    )


def rvq_encode(arch: int, rules: Rules, width: int, size: int) -> Tile:
    """Tile of the search without tables, float32 in both precisions; it spans a whole vector."""
    return Tile(
        rows=8,
        cols=_power_of_two(size, 16, 64),
        depth=_power_of_two(width, 16, 1 << 20),
        warps=4,
        stages=2,
        dot="ieee",
        chained=rules.chains(arch),
    )


def rvq_score(arch: int, rules: Rules, width: int, size: int) -> Tile:
    """Tile of the products of latents with a codebook's vectors, float32 in both precisions."""
    cols = _power_of_two(size, 16, 64)
    if rules.few:
        return _vector(arch, rules, cols, _power_of_two(width, 16, 1 << 20), 4)
    roomy = _roomy(arch)
    rows, stages, depth = 64 if roomy else 32, 3 if roomy else 2, _power_of_two(width, 16, 32)
    return Tile(rows, cols, depth, 4, stages, "ieee", rules.chains(arch))


def transposes_codebooks(rules: Rules) -> bool:
    """Whether the products with the codebooks read them as [Q, D, V] rather than [Q, V, D]."""
    return TRANSPOSED_CODEBOOKS and not rules.few


def rvq_choose(arch: int, rules: Rules) -> Options:
    """Launch options of the search in tables: a program holds a frame's scores of all codebooks."""
    return launch_options(8, 1, rules.chains(arch))
