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
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from encodec_rt_kernels import Precision
from tests.aot.compiled import SHARED_LIMIT, Compiled
from tests.aot.known import key_of, load, save
from tests.aot.loops import main_loop
from tests.aot.report import report

SLOTS = (3, 1, 1024)
"""Numbers of slots that must be served by the same binary: another one may have other bits."""


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
    known: Path | None = None,
) -> list[Compiled]:
    """Compile the kernels of both directions and precisions for ``arch``.

    With ``shares`` > 1 every ``shares``-th of the distinct kernels, from ``share`` on; with
    ``only`` the kernel of that name. Of the models with that many ``filters``. What the folder
    ``known`` has is not compiled again.
    """
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from encodec_rt_kernels import configs

    torch.set_num_threads(1)
    driver.set_active(CompilingDriver(arch))
    configs.architecture = lambda device: arch  # type: ignore[assignment]
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
        name = key_of(kernel, str(sorted(variants[key])), options, arch)
        one = load(known, name)
        if one is None:
            started = _cpu_seconds()
            binary = run(kernel, *args, grid=(1,), warmup=True, **options)
            seconds = _cpu_seconds() - started
            one = _inspect(_short(kernel), options, arch, binary, seconds)
            save(known, name, one)
        else:
            one = replace(one, is_known=True)
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
    precisions: tuple[Precision, ...] = ("exact", "fast")
    for precision, few in itertools.product(precisions, (False, True)):
        rules = encodec_rt_kernels.Rules(precision, few, chained=few)
        with_rules: dict[str, Any] = {
            name: functools.partial(row, rules=rules) for name, row in rows.items()
        }
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
    found = Counter(re.findall(r"\b(FFMA2?|HMMA|HGMMA|UTC[A-Z]*MMA)\b", listing))
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
        rules="few" if options["CHAINED"] else "many",
        loop=main_loop(listing),
    )


def _tool(name: str, *args: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a kernel breaks a rule or has got worse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 86, 90, 100, 120])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="one kernel, such as conv1d")
    parser.add_argument(
        "--baseline", action="store_true", help="make the loops of now what later ones are held to"
    )
    parser.add_argument(
        "--cache",
        help="compile into this Triton cache, the kernels of the embedded model too; judges none",
    )
    parser.add_argument(
        "--known", type=Path, help="folder of what was compiled before, and is not again"
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
        (arch, share, options.jobs, options.only, filters, None if options.cache else options.known)
        for arch in options.arch
        for share in shares
    ]
    started = time.perf_counter()
    try:
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            shares_done = pool.starmap(compile_all, tasks, chunksize=1)
    finally:
        if not options.cache:
            shutil.rmtree(cache)
    found = list(itertools.chain(*shares_done))
    if not found:
        parser.error(f"--only {options.only}: no kernel has that name")
    seconds = time.perf_counter() - started
    if options.cache:
        print(f"{len(found)} kernels compiled with Triton {triton.__version__} in {seconds:.0f} s")
        return 0
    return report(found, triton.__version__, seconds, write=options.baseline)


if __name__ == "__main__":
    sys.exit(main())
