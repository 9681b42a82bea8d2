"""The array types of the package, each defined once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
"""Numbers of any shape."""

Audio = NDArray[np.float32]
"""Samples in [-1, 1], [n] or [channels, n]."""

Samples = NDArray[np.int16]
"""Samples of 16 bits, as sound cards and files have them."""

Codes = NDArray[np.uint16]
"""Codebook indices [frames, Q]."""
