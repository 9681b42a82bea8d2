"""The WebAssembly codec in wasmtime: one model per module, its buffers as numpy arrays."""

from __future__ import annotations

import atexit
import ctypes
import json
import mmap
import weakref
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from encodec_rt.errors import BackendUnavailable, ConfigError, WeightsError
from encodec_rt.types import Codes, Floats

if TYPE_CHECKING:
    import wasmtime

LEFT, RIGHT = 1, 2
"""Edges of a stream that a step touches."""

ENCODER, DECODER = 1, 2

_REFUSALS = {
    -3: "its header is not that of a model for this codec, or is of another version",
    -4: "its layers do not fit one another",
    -5: "its length is not what its header announces",
    -6: "it holds a weight that is not a finite number",
    -7: "it needs more memory than there is",
}
_HEADER_BYTES = 64
_ADDRESSED = 1 << 32


@dataclass(frozen=True)
class Description:
    """What a model's file says about it, besides its weights."""

    name: str
    weights_sha256: str
    sampling_rate: int
    audio_channels: int
    hop_length: int
    hidden_size: int
    num_quantizers: int
    codebook_size: int
    bandwidths_kbps: tuple[float, ...]
    codebooks: tuple[int, ...]
    encoder_start_frames: int
    decoder_start_frames: int
    decoder_lag: int

    def codebooks_for(self, bandwidth_kbps: float) -> int:
        """Codebooks that a bandwidth takes. Raises ConfigError for one the model lacks."""
        if bandwidth_kbps not in self.bandwidths_kbps:
            accepted = ", ".join(f"{kbps:g}" for kbps in self.bandwidths_kbps)
            raise ConfigError(f"bandwidth {bandwidth_kbps} kbps; this model has {accepted}")
        return self.codebooks[self.bandwidths_kbps.index(bandwidth_kbps)]


class Module:
    """A loaded model. Numbers pass through three buffers, which the next call overwrites."""

    def __init__(self, content: bytes) -> None:
        """Load the content of a model's file.

        Raises WeightsError if it is not one, and BackendUnavailable without wasmtime.
        """
        runtime, engine, module = compiled()
        self._store: wasmtime.Store = runtime.Store(engine)
        # Before the interpreter tears down what wasmtime's finalizers need.
        weakref.finalize(self, self._store.close)
        self._exports: Any = runtime.Instance(self._store, module, []).exports(self._store)
        self._memory = self._exports["memory"]
        self._prefer_huge_pages()
        self._trap = runtime.Trap
        self._load(content)
        self.describes = _description(content, [self.call("describe", at) for at in range(10)])
        self._pcm, self._codes, self._latents = (
            self.call(name) for name in ("pcm", "codes", "latents")
        )

    def call(self, name: str, *arguments: int) -> int:
        """What the exported function ``name`` returns; a negative number is a refusal."""
        result: int = self._exports[name](self._store, *arguments)
        return result

    def pcm(self, samples: int) -> Floats:
        """The buffer of audio, [samples, channels]."""
        return self._view(self._pcm, (samples, self.describes.audio_channels), np.float32)

    def codes(self, frames: int, codebooks: int) -> Codes:
        """The buffer of codes, [frames, codebooks]."""
        return self._view(self._codes, (frames, codebooks), np.uint16)

    def latents(self, frames: int) -> Floats:
        """The buffer of latents, [frames, hidden_size]."""
        return self._view(self._latents, (frames, self.describes.hidden_size), np.float32)

    def state(self, handle: int) -> Floats:
        """The state of the stream ``handle``, [N]."""
        return self._view(
            self.call("state", handle), (self.call("state_floats", handle),), np.float32
        )

    def _prefer_huge_pages(self) -> None:
        """Ask for 2 MiB pages, if the system has them, before the weights are loaded.

        A step reads every weight once and would wait for address translation: at full size this
        saves 8 to 10 % CPU time, with the same bits.
        """
        if hasattr(mmap, "MADV_HUGEPAGE"):
            base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
            advise = ctypes.CDLL(None).madvise
            # wasmtime reserves all that 32 bits address. A refusal changes nothing.
            advise(ctypes.c_void_p(base), ctypes.c_size_t(_ADDRESSED), mmap.MADV_HUGEPAGE)

    def _load(self, content: bytes) -> None:
        at = self.call("reserve", len(content)) & 0xFFFFFFFF
        if not at:
            raise WeightsError(f"a model of {len(content)} bytes; {_REFUSALS[-7]}")
        self._view(at, (len(content),), np.uint8)[:] = np.frombuffer(content, np.uint8)
        try:
            refused = self.call("load")
        except self._trap as trap:
            raise WeightsError("this file crashed the WebAssembly codec") from trap
        if refused:
            raise WeightsError(f"this file is not a model for the codec: {_REFUSALS[refused]}")

    def _view(self, at: int, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
        # Created each time, since the memory may have grown and moved since the last call.
        count = int(np.prod(shape))
        size = count * np.dtype(kind).itemsize
        at &= 0xFFFFFFFF
        assert at + size <= self._memory.data_len(self._store)
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        raw = memoryview((ctypes.c_uint8 * size).from_address(base + at)).cast("B")
        view: NDArray[Any] = np.frombuffer(raw, kind, count).reshape(shape)
        return view


def wasm_bytes() -> bytes:
    """The compiled codec, as it came with this package."""
    return (Path(str(resources.files("encodec_rt"))) / "web" / "codec" / "codec.wasm").read_bytes()


@cache
def compiled() -> tuple[Any, Any, Any]:
    """wasmtime, its engine, and the codec compiled by it, once per process.

    Raises BackendUnavailable without wasmtime.
    """
    try:
        import wasmtime
    except ImportError:
        raise BackendUnavailable(
            "the portable codec needs wasmtime; install encodec-rt[portable]"
        ) from None
    settings = wasmtime.Config()
    settings.wasm_simd = True
    settings.cranelift_opt_level = "speed"
    engine = wasmtime.Engine(settings)
    module = wasmtime.Module(engine, wasm_bytes())
    atexit.register(engine.close)
    atexit.register(module.close)
    return wasmtime, engine, module


def _description(content: bytes, numbers: list[int]) -> Description:
    length = int.from_bytes(content[8:12], "little")
    try:
        meta = json.loads(content[_HEADER_BYTES : _HEADER_BYTES + length])
        rates = [float(kbps) for kbps in meta["bandwidths_kbps"]]
        books = [int(count) for count in meta["codebooks"]]
        if len(rates) != len(books) or not all(1 <= count <= numbers[3] for count in books):
            raise ValueError("codebooks")
        if not rates or int(meta["sampling_rate"]) < 1:
            raise ValueError("rates")
        return Description(
            name=str(meta["model"]),
            weights_sha256=bytes.fromhex(meta["weights_sha256"]).hex(),
            sampling_rate=int(meta["sampling_rate"]),
            audio_channels=numbers[0],
            hop_length=numbers[1],
            hidden_size=numbers[2],
            num_quantizers=numbers[3],
            codebook_size=numbers[4],
            bandwidths_kbps=tuple(rates),
            codebooks=tuple(books),
            encoder_start_frames=numbers[6],
            decoder_start_frames=numbers[7],
            decoder_lag=numbers[8],
        )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise WeightsError(
            "this file is not a model for the codec: its description cannot be read"
        ) from None
