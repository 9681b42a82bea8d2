"""Compile every kernel of the 24 kHz model for every architecture, on a machine without a GPU.

    python tests/aot/gate.py --arch 80 90

Runs one step of each direction with a driver that compiles and does not launch, so that what is
checked is what the launchers ask for: every (kernel, tile) in both precisions, with the argument
types and alignments of the engine. Prints a Markdown table and fails on a violation: a spill,
shared memory over the card's limit, opcodes that the precision does not allow, a slow compile.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one program may have (CUDA programming guide, table 27)."""

COMPILE_LIMIT_S = 10.0
SLOTS = (3, 1, 1024)
"""Numbers of slots that must be served by the same binary: another one may have other bits."""

_MATRIX_OPCODE = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came out of one compilation."""

    kernel: str
    shape: str
    dot: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    opcodes: str
    seconds: float
    variants: int = 1
    waits: bool = True

    def violations(self) -> list[str]:
        """Every rule that this kernel breaks, in words."""
        found = []
        if self.spilled_bytes:
            found.append(f"{self.spilled_bytes} bytes of registers spilled")
        if self.shared_bytes > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared_bytes} bytes shared, {SHARED_LIMIT[self.arch]} allowed")
        matrix = _MATRIX_OPCODE.search(self.opcodes)
        if self.dot == "ieee" and (matrix or "FFMA" not in self.opcodes):
            found.append(f"float32 products as {self.opcodes}, not FFMA")
        if self.dot == "tf32" and not matrix:
            found.append(f"TF32 products as {self.opcodes}, not a tensor core's")
        if self.seconds > COMPILE_LIMIT_S:
            found.append(f"{self.seconds:.1f} CPU s to compile, {COMPILE_LIMIT_S:g} allowed")
        if not self.waits:
            found.append("chained, and does not wait for the launch before it")
        if self.variants > 1:
            found.append(f"{self.variants} binaries, where slots must not make a difference")
        return found

    def row(self) -> str:
        """One line of the table."""
        return (
            f"| {self.kernel} | {self.shape} | {self.dot} | {self.arch} | {self.registers} | "
            f"{self.spilled_bytes} | {self.shared_bytes} | {self.opcodes} | {self.seconds:.1f} |"
        )


HEADER = (
    "| kernel | shape | products | sm | registers | spilled | shared | opcodes | s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class CompilingDriver:
    """A Triton driver for a device that is not there: enough of one to compile."""

    def __init__(self, arch: int) -> None:
        """Compile for compute capability ``arch``, 90 for 9.0."""
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> object:
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """A device number of its own, under which Triton keeps what was compiled."""
        arch: int = self.target.arch
        return arch

    def get_current_stream(self, device: int | None = None) -> int:
        """No stream is ever used."""
        return 0


def compile_all(
    arch: int,
    share: int = 0,
    shares: int = 1,
    only: str | None = None,
    filters: Sequence[int] = (32,),
) -> list[Compiled]:
    """Compile the kernels of both directions and precisions for ``arch``.

    With ``shares`` > 1 every ``shares``-th of the distinct kernels, from ``share`` on; with
    ``only`` the kernel of that name. Of the models with that many ``filters``.
    """
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from encodec_rt_kernels import configs

    torch.set_num_threads(1)
    driver.set_active(CompilingDriver(arch))
    configs.architecture = lambda device: arch
    launches: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
    variants: defaultdict[str, set[str]] = defaultdict(set)

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if only is not None and _short(kernel) != only:
            return
        key = f"{kernel.__name__} {sorted(options.items())}"
        launches.setdefault(key, (kernel, args, options))
        *_, bind = kernel.device_caches[arch]
        variants[key].add(str(bind(*args, debug=False, **options)[1]))

    run, JITFunction.run = JITFunction.run, record
    try:
        for slots, width in itertools.product(SLOTS, filters):
            launch_all(slots, width)
    finally:
        JITFunction.run = run
    found = []
    for key, (kernel, args, options) in list(launches.items())[share::shares]:
        started = _cpu_seconds()
        binary = run(kernel, *args, grid=(1,), warmup=True, **options)
        seconds = _cpu_seconds() - started
        one = _inspect(_short(kernel), options, arch, binary, seconds)
        found.append(replace(one, variants=len(variants[key])))
    return found


def launch_all(slots: int, filters: int = 32) -> None:
    """One step of each direction of the 24 kHz model and a commit, by all rules.

    The embedded model has 16 ``filters`` and is otherwise the same.
    """
    import torch

    import encodec_rt_kernels
    from encodec_rt.config import EncodecConfig
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.streaming.backends.torch import TORCH
    from encodec_rt.streaming.plan import plan
    from encodec_rt.streaming.state import StreamState
    from encodec_rt.streaming.steps import run
    from encodec_rt.streaming.weights import pack_layers

    # Kernels are compiled from shapes and alignments; no weight is ever read.
    config, nowhere = EncodecConfig(num_filters=filters), torch.device("meta")
    model = EncodecModel(config).to(nowhere).eval()
    rows = {
        field.name: getattr(encodec_rt_kernels, field.name)
        for field in fields(TORCH)
        if hasattr(encodec_rt_kernels, field.name)
    }
    for precision, few in itertools.product(("exact", "fast"), (False, True)):
        rules = encodec_rt_kernels.Rules(precision, few, chained=few)
        with_rules = {name: functools.partial(row, rules=rules) for name, row in rows.items()}
        ops = replace(TORCH, **with_rules)
        for part, prefix, frame in (
            (model.encoder, "encoder", (slots, config.hop_length, config.audio_channels)),
            (model.decoder, "decoder", (slots, 1, config.hidden_size)),
        ):
            specs = plan(part, prefix)
            now, proposed = (StreamState.allocate(specs, slots, nowhere) for _ in range(2))
            x = torch.zeros(frame, device=nowhere)
            run(pack_layers(model, specs, ops, nowhere), now, proposed, x)
            active = torch.ones(slots, dtype=torch.bool, device=nowhere)
            ops.commit(now.arena, proposed.arena, active)
        shape = (config.num_quantizers, config.codebook_size, config.hidden_size)
        packed = ops.pack_codebooks((torch.zeros(shape, device=nowhere),))
        latents = torch.zeros(slots, 1, config.hidden_size, device=nowhere)
        ops.rvq_decode(ops.rvq_encode(latents, packed, codebooks=8), packed)
        # More codebooks than there are tables for are searched in the books.
        ops.rvq_encode(latents, packed, codebooks=config.num_quantizers)


def _short(kernel: Any) -> str:
    """``conv1d`` of ``_conv1d_kernel``."""
    name: str = kernel.__name__
    return name.strip("_").removesuffix("_kernel")


def _cpu_seconds() -> float:
    """Of this process and its finished children, since wall time says more of the neighbours."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def _inspect(
    name: str, options: dict[str, Any], arch: int, binary: Any, seconds: float
) -> Compiled:
    from encodec_rt_kernels.device import layer_sizes

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = _tool("nvdisasm", "-c", file.name)
    counts = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert counts, f"cuobjdump did not say what {name} uses: {usage!r}"
    found = Counter(re.findall(r"\b(FFMA|HMMA|HGMMA|UTC[A-Z]*MMA)\b", listing))
    return Compiled(
        kernel=name,
        shape=layer_sizes(options) or "any",
        dot=options.get("DOT", "none"),
        arch=arch,
        registers=int(counts[1]),
        # Kernels have no arrays of their own, so whatever is on the stack was spilled.
        spilled_bytes=int(counts[2]),
        shared_bytes=binary.metadata.shared,
        opcodes=" ".join(f"{opcode} {count}" for opcode, count in sorted(found.items())),
        seconds=seconds,
        waits=not options["CHAINED"] or "griddepcontrol.wait" in binary.asm["ptx"],
    )


def _tool(name: str, *args: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout


def _compile_share(task: tuple[int, int, int, str | None, tuple[int, ...]]) -> list[Compiled]:
    return compile_all(*task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the number of violations is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 86, 90, 100, 120])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="one kernel, such as conv1d")
    parser.add_argument(
        "--cache", help="keep the kernels in this Triton cache, those of the embedded model too"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.arch) - set(SHARED_LIMIT)
    if unknown:
        parser.error(f"--arch {sorted(unknown)}; there are {sorted(SHARED_LIMIT)}")

    # Interpreted functions cannot be compiled, and a cached one says nothing of compile time.
    os.environ.pop("TRITON_INTERPRET", None)
    cache = options.cache or tempfile.mkdtemp(prefix="aot-")
    os.environ["TRITON_CACHE_DIR"] = cache
    filters = (32, 16) if options.cache else (32,)
    import triton

    shares = range(options.jobs)
    tasks = [
        (arch, share, options.jobs, options.only, filters)
        for arch in options.arch
        for share in shares
    ]
    started = time.perf_counter()
    try:
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            found = [one for share in pool.imap(_compile_share, tasks) for one in share]
    finally:
        if not options.cache:
            shutil.rmtree(cache)
    if not found:
        parser.error(f"--only {options.only}: no kernel has that name")
    found.sort(key=lambda one: (one.kernel, one.dot, one.shape, one.arch))
    bad = [(one, broken) for one in found if (broken := one.violations())]
    print(HEADER, *(one.row() for one in found), sep="\n")
    print(
        f"\ntriton {triton.__version__}: {len(found)} kernels for sm {options.arch} in "
        f"{time.perf_counter() - started:.0f} s, {len(bad)} in violation"
    )
    for one, broken in bad:
        where = f"{one.kernel} {one.shape} {one.dot} sm_{one.arch}"
        print(f"{where}: {'; '.join(broken)}", file=sys.stderr)
    return min(len(bad), 1)


if __name__ == "__main__":
    sys.exit(main())
