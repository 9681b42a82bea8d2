"""Session descriptions (SDP) as a broken or hostile peer might send them."""

from __future__ import annotations

import numpy as np


def damaged_sdp(sdp: str, rng: np.random.Generator) -> str:
    """``sdp`` with one to three lines dropped, truncated or repeated elsewhere."""
    lines = sdp.split("\r\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        kind = rng.integers(3)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines[at] = lines[at][: rng.integers(len(lines[at]) + 1)]
        else:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
    return "\r\n".join(lines)
