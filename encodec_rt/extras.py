"""The packages that only some features need, and the extra of encodec-rt that installs each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from encodec_rt.errors import BackendUnavailable

EXTRAS = {
    "aiohttp": "link",
    "aioice": "link",
    "aiortc": "link",
    "av": "files",
    "cryptography": "link",
    "huggingface_hub": "hub",
    "ifaddr": "link",
    "livekit": "aec",
    "matplotlib": "plots",
    "onnx": "export",
    "onnxruntime": "export",
    "pesq": "quality",
    "prometheus_client": "server",
    "pyarrow": "corpus",
    "pystoi": "quality",
    "ray": "ray",
    "samplerate": "live",
    "triton": "gpu",
    "visqol": "quality",
    "wasmtime": "portable",
    "zimtohrli": "quality",
}
"""The extra, by the name that is imported."""


def missing(error: ImportError, feature: str) -> BackendUnavailable | None:
    """What to raise instead of ``error`` if ``feature`` needed one of EXTRAS, or None."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    absent = isinstance(error, ModuleNotFoundError)
    problem = "which is not installed" if absent else f"which cannot be imported here ({error})"
    return BackendUnavailable(
        f"{feature} needs {package}, {problem}; run: pip install 'encodec-rt[{EXTRAS[package]}]'"
    )


@contextmanager
def needed_for(feature: str) -> Iterator[None]:
    """Around an import: raises BackendUnavailable for a package of EXTRAS that is missing."""
    try:
        yield
    except ImportError as error:
        refusal = missing(error, feature)
        if refusal is None:
            raise
        raise refusal from error
