"""The layer graph of a causal model as data, which a streaming step walks through.

Times are relative to the layer's own input: a ``context`` is the number of past inputs a
convolution still needs, a ``lag`` the number of samples by which a layer's output is behind a full
frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from encodec_rt.model.conv import EncodecConv1d, EncodecConvTranspose1d
from encodec_rt.model.lstm import EncodecLSTM
from encodec_rt.model.seanet import EncodecResnetBlock


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A convolution, after an ELU if ``elu``."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    dilation: int
    elu: bool

    @property
    def context(self) -> int:
        """Past inputs kept: the left padding of the offline layer."""
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    @property
    def state(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of one slot's state by name."""
        return {self.name: (self.context, self.in_channels)}


@dataclass(frozen=True, slots=True)
class ConvTransposeSpec:
    """A transposed convolution after an ELU, whose first ``trim_left`` outputs are dropped."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    trim_left: int

    @property
    def state(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of one slot's state by name: the outputs that later inputs still add to."""
        return {self.name: (self.kernel - self.stride, self.out_channels)}


@dataclass(frozen=True, slots=True)
class ResBlockSpec:
    """ELU, dilated convolution, ELU, 1x1 convolution, plus a shortcut."""

    name: str
    channels: int
    hidden: int
    kernel: int
    dilation: int
    conv_shortcut: bool

    @property
    def context(self) -> int:
        """Past inputs kept by the dilated convolution."""
        return (self.kernel - 1) * self.dilation

    @property
    def state(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of one slot's state by name."""
        return {self.name: (self.context, self.channels)}


@dataclass(frozen=True, slots=True)
class LstmSpec:
    """A stack of LSTM layers added to its input."""

    name: str
    channels: int
    layers: int

    @property
    def state(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of one slot's state by name: hidden and cell."""
        shape = (self.layers, self.channels)
        return {f"{self.name}.h": shape, f"{self.name}.c": shape}


LayerSpec = ConvSpec | ConvTransposeSpec | ResBlockSpec | LstmSpec
Plan = tuple[LayerSpec, ...]


def plan(part: nn.Module, prefix: str) -> Plan:
    """The layers of an EncodecEncoder or EncodecDecoder, named ``prefix.layers.N``."""
    layers = part.layers
    assert isinstance(layers, nn.ModuleList)
    specs: list[LayerSpec] = []
    elu = False
    for index, layer in enumerate(layers):
        name = f"{prefix}.layers.{index}"
        if isinstance(layer, nn.ELU):
            elu = True
            continue
        specs.append(_spec(name, layer, elu))
        elu = False
    return tuple(specs)


def _spec(name: str, layer: nn.Module, elu: bool) -> LayerSpec:
    if isinstance(layer, EncodecConv1d):
        conv = layer.conv
        return ConvSpec(
            name,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            layer.stride,
            conv.dilation[0],
            elu,
        )
    if isinstance(layer, EncodecConvTranspose1d):
        assert elu, "every transposed convolution of the graph follows an ELU"
        up = layer.conv
        return ConvTransposeSpec(
            name,
            up.in_channels,
            up.out_channels,
            up.kernel_size[0],
            up.stride[0],
            layer.trim_left,
        )
    if isinstance(layer, EncodecResnetBlock):
        dilated, *others = block_convs(layer)
        return ResBlockSpec(
            name,
            dilated.in_channels,
            dilated.out_channels,
            dilated.kernel_size[0],
            dilated.dilation[0],
            conv_shortcut=len(others) == 2,
        )
    assert isinstance(layer, EncodecLSTM), f"unknown layer {type(layer).__name__}"
    return LstmSpec(name, layer.lstm.hidden_size, layer.lstm.num_layers)


def block_convs(block: EncodecResnetBlock) -> list[nn.Conv1d]:
    """The dilated convolution, the 1x1 one, and the shortcut's if it has one."""
    layers = [*block.block, block.shortcut]
    return [layer.conv for layer in layers if isinstance(layer, EncodecConv1d)]


def start_frames(specs: Plan, pad_mode: str, samples_per_frame: int) -> int:
    """Frames that the first output needs: 1, or more where the left edge is a reflection.

    A reflection of ``context`` samples reads one sample more than it writes. Lags of earlier layers
    shorten the frame.
    """
    if pad_mode != "reflect":
        return 1
    needed = 1
    rate, lag = samples_per_frame, 0
    for spec in specs:
        if isinstance(spec, (ConvSpec, ResBlockSpec)):
            needed = max(needed, (spec.context + lag) // rate + 1)
        if isinstance(spec, ConvSpec):
            rate //= spec.stride
        elif isinstance(spec, ConvTransposeSpec):
            rate, lag = rate * spec.stride, lag * spec.stride + spec.trim_left
    return needed


def output_lag(specs: Plan) -> int:
    """Samples by which the output of a decoder is behind the frames pushed into it."""
    lag = 0
    for spec in specs:
        if isinstance(spec, ConvTransposeSpec):
            lag = lag * spec.stride + spec.trim_left
    return lag
