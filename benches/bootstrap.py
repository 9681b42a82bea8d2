"""Confidence intervals of means over clips, of one codec or two, by percentile bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 4_000
SHARE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of ``values``, by drawing with replacement."""
    rng = np.random.default_rng(0)
    drawn = np.asarray(values)[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return round(float(low), 4), round(float(high), 4)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The mean of ``ours - theirs`` over the same clips, and its 95 % confidence interval.

    Pairing removes what makes one clip harder than another for both. Raises ValueError unless both
    have the same number of clips.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return round(float(np.mean(differences)), 4), *interval(differences)
