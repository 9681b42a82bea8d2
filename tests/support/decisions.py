"""Whether codes are right: a check that neither hides nor exaggerates near-ties.

Comparing codes alone says little, since after a near-tie all later codebooks see another residual.
So this checks that every code is the best choice on the path taken, and that the codes agree with
float64 up to its first near-tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.tolerances import bound


@dataclass(frozen=True, slots=True)
class Decisions:
    """The findings for N frames.

    ``worst_excess`` is the largest excess of a chosen squared distance over the best, and
    ``smallest_gap`` the smallest gap between the two best, both relative. ``excused`` is the share
    of frames with a near-tie, ``flipped`` the number of codes that are not float64's, and
    ``disagreeing`` those of them before the frame's first near-tie.
    """

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
    """Judge codes [N, Q] of latents [N, D] with codebooks [Q, V, D], in float64."""
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
    """Assert that codes [N, Q] are a possible result of an exact search; print the findings."""
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
        # On a tie topk may return any index; argmax of the comparison returns the lowest.
        code = (distance == two[:, :1]).int().argmax(1)
        codes.append(code)
        gaps.append((two[:, 1] - two[:, 0]) / two[:, 0].clamp(min=1e-30))
        residual = residual - book[code]
    return torch.stack(codes, 1), torch.stack(gaps, 1)
