"""Each layer on a GPU: its time, and how close it comes to the lower bound (roofline).

    python -m benches.kernels [--rules few many] [--precision exact fast] [--slots 1 1024]

A layer's lower bound ("floor") is the longer of two times: that of moving its weights, activations
and state through memory once, and that of its products, at the rates that a copy and a matrix
product reach in the same run. A layer with a wrong result is not timed. The rules are those of a
codec: for few slots, chained, with 1 slot; for many slots, with 1024.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from triton.errors import TritonError

from benches.checks import NotRight
from benches.environment import Json
from benches.record import RESULTS, Record
from benches.workload import OneLayer, layers, random_24khz, steps_per_frame
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.triton import triton_ops
from encodec_rt.streaming.cuda_graph import capture
from encodec_rt.streaming.plan import ConvSpec, ConvTransposeSpec, LayerSpec, LstmSpec

PER_GRAPH = 20
REPLAYS = 50
LARGEST_ERROR = {"exact": 4e-6, "fast": 7e-4}
"""Relative to float64; the loosest of the tests' bounds."""


@dataclass(frozen=True, slots=True)
class Work:
    """The least work of one frame of one layer."""

    products: int
    weight_bytes: int
    slot_bytes: int

    def floor_us(self, slots: int, bytes_per_s: float, products_per_s: float) -> float:
        """Microseconds for ``slots`` slots at these rates."""
        moved = (self.weight_bytes + slots * self.slot_bytes) / bytes_per_s
        return 1e6 * max(moved, slots * self.products / products_per_s)


def work(spec: LayerSpec, steps: int) -> Work:
    """The work of a layer on ``steps`` inputs; its state is read and written."""
    if isinstance(spec, LstmSpec):
        weights = spec.layers * 8 * spec.channels**2
        products, outputs = steps * weights, steps * spec.channels
        inputs = outputs
    elif isinstance(spec, ConvSpec):
        weights = spec.in_channels * spec.out_channels * spec.kernel
        products = steps // spec.stride * weights
        inputs, outputs = steps * spec.in_channels, steps // spec.stride * spec.out_channels
    elif isinstance(spec, ConvTransposeSpec):
        weights = spec.in_channels * spec.out_channels * spec.kernel
        products = steps * weights
        inputs, outputs = steps * spec.in_channels, steps * spec.stride * spec.out_channels
    else:
        weights = spec.channels * spec.hidden * (spec.kernel + 1)
        weights += spec.channels**2 if spec.conv_shortcut else 0
        products = steps * weights
        inputs = outputs = steps * spec.channels
    state = sum(math.prod(shape) for shape in spec.state.values())
    return Work(products, 4 * weights, 4 * (inputs + outputs + 2 * state))


def require_right(one: OneLayer, precision: str) -> float:
    """The error of a layer relative to float64. Raises NotRight if it is over the bound."""
    given, wanted = one.step().double(), one.reference()
    error = float((given - wanted).norm() / wanted.norm())
    if not error <= LARGEST_ERROR[precision]:
        raise NotRight(
            f"{one.spec.name}: error {error:.2e} is over {LARGEST_ERROR[precision]:.1e}; a layer "
            "whose result is wrong is not timed"
        )
    return error


def device_ms(run: Callable[[], object], count: int = REPLAYS) -> list[float]:
    """The device time of each of ``count`` calls, in ms."""
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(count):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def ceilings(device: torch.device) -> dict[str, float]:
    """The bytes per second of a copy, and the products per second in each precision."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    copying = sorted(device_ms(lambda: target.copy_(source)))[REPLAYS // 2]
    found = {"bytes": 2e3 * source.nbytes / copying}
    side = 8192
    left, right = torch.randn(2, side, side, device=device)
    for precision in ("fast", "exact"):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "fast" else "ieee"
        multiplying = sorted(device_ms(lambda: left @ right, 10))[5]
        found[precision] = 1e3 * side**3 / multiplying
    return found


def ieee_products() -> None:
    """Make torch compute in float32, as the kernels do; by default it uses TF32 in places."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def finish(record: Record) -> int:
    """Write the record and print its name; 1 if a result in it is wrong."""
    print(record.write().name)
    return int(any(case.values.get("wrong") is True for case in record.cases))


def require_cuda() -> torch.device:
    """The CUDA device. Exits if there is none, since nothing is estimated."""
    if not torch.cuda.is_available():
        raise SystemExit("this bench needs a CUDA device, and torch sees none")
    return torch.device("cuda")


def measure(
    one: OneLayer, need: Work, slots: int, precision: str, limits: dict[str, float]
) -> tuple[dict[str, Json], list[float]]:
    """A layer's values for the record, and its times in ms. Raises NotRight."""
    error = require_right(one, precision)

    def several() -> None:
        for _ in range(PER_GRAPH):
            one.step()

    (replay,) = capture(one.x.device, several)
    times = [ms / PER_GRAPH for ms in device_ms(replay, REPLAYS)]
    median_s = 1e-3 * sorted(times)[len(times) // 2]
    floor = need.floor_us(slots, limits["bytes"], limits[precision])
    values: dict[str, Json] = {
        "error": error,
        "gigabytes_per_s": 1e-9 * (need.weight_bytes + slots * need.slot_bytes) / median_s,
        "tflops": 2e-12 * slots * need.products / median_s,
        "floor_us": floor,
        "percent_of_floor": 1e-4 * floor / median_s,
    }
    return values, times


def time_layers(
    record: Record,
    model: EncodecModel,
    device: torch.device,
    options: argparse.Namespace,
    limits: dict[str, float],
) -> None:
    """Time every layer by every rule asked for, exact ones first, until the time is up."""
    end = time.perf_counter() + options.budget
    cases = itertools.product(options.precision, options.rules, layers(model))
    for precision, rules, spec in cases:
        few = rules == "few"
        for slots in options.slots or ([1] if few else [1024]):
            case = {"layer": spec.name, "slots": slots, "precision": precision, "rules": rules}
            if time.perf_counter() > end:
                record.add({"skipped": "all other layers"}, values={"reason": f"from {case} on"})
                return
            ops = triton_ops(device, precision, few=few, chained=few)
            one = OneLayer(model, spec, ops, slots, device)
            need = work(spec, steps_per_frame(model, spec))
            try:
                values, times = measure(one, need, slots, precision, limits)
            except (RuntimeError, TritonError) as error:
                reason = f"{type(error).__name__}: {error}"[:500]
                wrong = isinstance(error, NotRight)
                added = record.add(case, values={"reason": reason, "wrong": wrong})
            else:
                added = record.add(case, {"device": times}, values=values, keep_samples=True)
            print(record.table([added]), flush=True)
            record.save()


def main() -> int:
    """Time every layer and write one JSON file; 1 if a layer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slots", type=int, nargs="+", help="default: 1 for few, 1024 for many")
    parser.add_argument("--rules", nargs="+", default=["few", "many"], choices=["few", "many"])
    parser.add_argument(
        "--precision", nargs="+", default=["exact", "fast"], choices=["exact", "fast"]
    )
    parser.add_argument("--budget", type=float, default=60.0, help="seconds in all")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    device = require_cuda()
    ieee_products()
    record = Record("kernels", device=device.type, folder=options.out)
    limits = ceilings(device)
    record.add({"ceilings": "measured"}, values=dict(limits))
    with torch.inference_mode():
        time_layers(record, random_24khz(), device, options, limits)
    return finish(record)


if __name__ == "__main__":
    sys.exit(main())
