"""Whether codes are right: a check that neither hides nor inflates a near-tie.

Comparing codes alone says little, because after one near-tie all later codebooks see another
residual. So: was every choice the best one on the path taken; do the codes agree with float64 until
its first near-tie; and is the decoded sum that of the vectors named.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.tolerances import bound


@dataclass(frozen=True, slots=True)
class Decisions:
    """What was found for N frames: shares of frames, and relative differences of distances."""

    frames: int
    worst_excess: float
    smallest_gap: float
    excused: float
    flipped: int
    disagreeing: int

    def __str__(self) -> str:
        return (
            f"{self.frames} frames: worst excess {self.worst_excess:.1e}, smallest gap "
            f"{self.smallest_gap:.1e}, excused {100 * self.excused:.3f} %, flipped codes "
            f"{self.flipped}, disagreeing before a near-tie {self.disagreeing}"
        )


def judge(latents: Tensor, vectors: Tensor, codes: Tensor) -> Decisions:
    """Judge codes [N, Q] of latents [N, D] under the books [Q, V, D], all in float64."""
    tau = bound("near tie", "float32")
    truth, gaps = _search(latents, vectors, codes.shape[1])
    residual = latents.double().cpu()
    excess = []
    for stage, code in enumerate(codes.cpu().unbind(1)):
        book = vectors[stage].double().cpu()
        distance = torch.cdist(residual, book, compute_mode="donot_use_mm_for_euclid_dist").square()
        best = distance.min(1).values
        chosen = distance.gather(1, code[:, None])[:, 0]
        excess.append((chosen - best) / best.clamp(min=1e-30))
        residual = residual - book[code]
    near = (gaps < tau).cumsum(1) > 0
    wrong = codes.cpu() != truth
    return Decisions(
        frames=len(latents),
        worst_excess=float(torch.stack(excess).max()),
        smallest_gap=float(gaps.min()),
        excused=float(near.any(1).double().mean()),
        flipped=int(wrong.sum()),
        disagreeing=int((wrong & ~near).sum()),
    )


def assert_right(latents: Tensor, vectors: Tensor, codes: Tensor) -> Decisions:
    """Assert that codes [N, Q] are what an exact search may give; returns and prints the facts."""
    found = judge(latents, vectors, codes)
    print(found)
    assert found.worst_excess <= bound("near tie", "float32"), found
    assert found.disagreeing == 0, found
    assert found.excused <= bound("near tie", "share"), found
    return found


def _search(latents: Tensor, vectors: Tensor, books: int) -> tuple[Tensor, Tensor]:
    """Codes [N, Q] by exhaustive search, and the relative gap to the second best [N, Q]."""
    residual = latents.double().cpu()
    codes, gaps = [], []
    for book in vectors[:books].double().cpu():
        distance = torch.cdist(residual, book, compute_mode="donot_use_mm_for_euclid_dist").square()
        two = distance.topk(2, dim=1, largest=False).values
        # topk does not promise the lowest index of equals; argmin of an exact comparison does.
        code = (distance == two[:, :1]).int().argmax(1)
        codes.append(code)
        gaps.append((two[:, 1] - two[:, 0]) / two[:, 0].clamp(min=1e-30))
        residual = residual - book[code]
    return torch.stack(codes, 1), torch.stack(gaps, 1)
