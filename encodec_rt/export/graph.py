"""A small builder of ONNX graphs: nodes by operator name, constants as needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from encodec_rt.errors import BackendUnavailable, ConfigError

OPSET = 18
IR_VERSION = 9
"""Versions that onnxruntime reads since 1.15."""


def import_onnx() -> Any:
    """The ``onnx`` package. Raises BackendUnavailable if it is missing."""
    try:
        import onnx
    except ImportError:
        raise BackendUnavailable(
            "the export to ONNX needs onnx and onnxruntime; run: pip install 'encodec-rt[export]'"
        ) from None
    return onnx


class Graph:
    """Nodes and constants under construction; values are named by strings."""

    def __init__(self, *, half: bool = False) -> None:
        """With ``half``, weights are kept in float16 and made float32 by the runtime, once."""
        self._onnx = import_onnx()
        self._half = half
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._shared: dict[tuple[int, ...], str] = {}
        self._count = 0

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or a tuple of them."""
        names = tuple(self._name(operator) for _ in range(outputs))
        made = self._onnx.helper.make_node(operator, list(inputs), list(names), **attributes)
        self._nodes.append(made)
        return names[0] if outputs == 1 else names

    def weight(self, values: NDArray[np.float32]) -> str:
        """A constant float32, kept in float16 with ``half``.

        Raises ConfigError for a value too large for float16.
        """
        if not self._half:
            return self.constant(values)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise ConfigError("a weight is too large for float16; export this model in float32")
        return str(self.node("Cast", self.constant(rounded), to=self._onnx.TensorProto.FLOAT))

    def rounded(self, values: Tensor) -> Tensor:
        """``values`` as float32, as they will be in this graph."""
        values = values.detach().float()
        return values.half().float() if self._half else values

    def constant(self, values: NDArray[Any]) -> str:
        """A constant of any type."""
        name = self._name("constant")
        self._constants[name] = self._onnx.numpy_helper.from_array(
            np.ascontiguousarray(values), name
        )
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 [n], shared between equal ones."""
        if values not in self._shared:
            self._shared[values] = self.constant(np.array(values, np.int64))
        return self._shared[values]

    def scalar(self, value: int) -> str:
        """A constant int64 []."""
        return self.constant(np.array(value, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """``x`` in another shape; one side may be -1."""
        return str(self.node("Reshape", x, self.integers(*shape)))

    def slice(self, x: str, start: int, end: int, *, axis: int = 0, step: int = 1) -> str:
        """``x[start:end:step]`` along an axis."""
        numbers = (self.integers(value) for value in (start, end, axis, step))
        return str(self.node("Slice", x, *numbers))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        """The concatenation of the parts; a single one is returned as it is."""
        return parts[0] if len(parts) == 1 else str(self.node("Concat", *parts, axis=axis))

    def rename(self, value: str, name: str) -> None:
        """Name a value as an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))

    def model(
        self,
        inputs: dict[str, tuple[Any, Sequence[int | str]]],
        outputs: dict[str, tuple[Any, Sequence[int | str]]],
        meta: dict[str, str],
    ) -> Any:
        """The checked model; inputs and outputs are numpy types and shapes by name."""
        helper = self._onnx.helper

        def described(sides: dict[str, tuple[Any, Sequence[int | str]]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(shape)
                )
                for name, (kind, shape) in sides.items()
            ]

        graph = helper.make_graph(
            self._nodes, "encodec", described(inputs), described(outputs),
            list(self._constants.values()),
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="encodec_rt",
        )  # fmt: skip
        helper.set_model_props(model, meta)
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what.lower()}_{self._count}"
