"""Correctness checks before anything is timed on a GPU, and how failures are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from triton.errors import TritonError

from benches.environment import Json
from benches.record import Record
from benches.rows import Contender, Row, bandwidth_kbps
from benches.timing import FRAME_MS
from benches.workload import frames
from encodec_rt.model.encodec import EncodecModel

FLIPS_ALLOWED: dict[str, float] = {"exact": 1e-3, "fast": 1.0}
"""Share of frames whose codes may differ from plain torch's: near-ties only, or any number."""


class NotRight(RuntimeError):
    """A result is wrong, so it is not timed."""


FAILURES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TritonError,
    TypeError,
    ValueError,
)
"""What compilers and failed launches may raise: it is recorded, and the bench continues."""


def codes_of(runner: Contender, audio: Tensor, hop: int) -> Tensor:
    """Codes [frames, S, Q] of [S, n] audio."""
    return torch.stack([runner.encode(pcm).cpu().clone() for pcm in frames(audio, hop)])


def offline_codes(model: EncodecModel, audio: Tensor) -> Tensor:
    """Codes [frames, S, Q] of the offline model, for each frame of [S, n] audio by itself."""
    parts = frames(audio, model.config.hop_length)
    latents = [model.encoder(pcm[:, None]) for pcm in parts]
    kbps = bandwidth_kbps(model)
    return torch.stack([model.quantizer.encode(one, kbps)[:, :, 0].t() for one in latents])


def require_same_codes(given: Tensor, wanted: Tensor, precision: str) -> float:
    """The share of frames whose codes differ. Raises NotRight if ``precision`` allows fewer.

    One differing frame is always allowed, since it may be a near-tie.
    """
    differing = (given != wanted).any(-1)
    share = float(differing.double().mean())
    if int(differing.sum()) > max(1.0, FLIPS_ALLOWED[precision] * differing.numel()):
        raise NotRight(
            f"{100 * share:.2f} % of the frames have other codes than with plain torch; a wrong "
            "result is not timed"
        )
    return share


def note(
    record: Record,
    case: Mapping[str, Json],
    timings_ms: Mapping[str, Sequence[float]] | None = None,
    **values: Json,
) -> None:
    """Add a case with all its samples, print it, and save the record so far."""
    timed = {name: samples for name, samples in (timings_ms or {}).items() if samples}
    added = record.add(case, timed, values=values, deadline_ms=FRAME_MS, keep_samples=True)
    print(record.table([added]), flush=True)
    record.save()


def skip(record: Record, row: Row, error: BaseException) -> None:
    """Record why a row is not timed."""
    reason = f"{type(error).__name__}: {error}".strip()[:500]
    note(record, {"skipped": row.name}, reason=reason, wrong=isinstance(error, NotRight))
