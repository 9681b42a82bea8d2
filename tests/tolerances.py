"""The one table of bounds. Loosening one needs its measurement in CHANGELOG.md.

Errors are relative root mean squares, ||given - wanted|| / ||wanted||, against float64, unless the
reason says otherwise.
"""

from __future__ import annotations

from types import MappingProxyType

_BOUNDS = MappingProxyType(
    {
        ("own path", "float32"): (
            1e-5,
            "Excess squared distance of a code over the best one, as a share of |residual|^2: a "
            "float32 latent is off by some 1e-6, which moves a difference of distances by 4e-6.",
        ),
        ("stream audio", "float32"): (
            1e-5,
            "100 dB. Sums of the same products in another order; 1e-6 is usual.",
        ),
    }
)


def bound(op: str, dtype: str) -> float:
    """The bound for an operation in a type; a KeyError means that none was agreed on."""
    return _BOUNDS[op, dtype][0]
