"""Array types that several subpackages use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
"""Samples in [-1, 1], [n] or [channels, n]."""

Codes = NDArray[np.uint16]
"""Codebook indices [frames, Q]."""
