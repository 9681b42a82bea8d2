"""A stream's snapshot in the form that the WebAssembly codec takes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_rt.errors import StateError
from encodec_rt.portable.snapshot import PortableSnapshot
from encodec_rt.streaming.snapshot import Origin, Snapshot
from encodec_rt.types import Audio


def to_portable(snapshot: Snapshot, hop_length: int) -> PortableSnapshot:
    """The portable form of ``snapshot``, for a stream of a model with that hop.

    Raises StateError for a stream of blocks that holds back whole frames: the WebAssembly codec
    steps frame by frame and never does.
    """
    origin, fields = snapshot.origin, dict[str, Any](snapshot.fields)
    encodes = origin.kind == "encoder"
    waiting = _array(fields["_waiting"])
    if fields["_begun"] and len(waiting) >= (hop_length if encodes else 1):
        raise StateError("this stream holds whole frames back for a block; use block_frames=1")
    return PortableSnapshot(
        direction=origin.kind,
        weights_sha256=origin.weights_sha256,
        start=origin.start,
        codebooks=origin.codebooks,
        state=_array(snapshot.row),
        waiting=waiting,
        begun=fields["_begun"],
        closed=fields["closed"],
        consumed=fields["samples_in" if encodes else "frames_in"],
        produced=fields["frames_out" if encodes else "samples_out"],
        **{} if encodes else _decoder_only(fields),
    )


def from_portable(snapshot: PortableSnapshot, device: str | torch.device = "cpu") -> Snapshot:
    """The snapshot for ``restore`` of a stream on ``device``, which checks whose it is."""
    fields: dict[str, object] = {
        "closed": snapshot.closed,
        "_waiting": _tensor(snapshot.waiting),
        "_begun": snapshot.begun,
    }
    if snapshot.direction == "encoder":
        fields |= {"samples_in": snapshot.consumed, "frames_out": snapshot.produced}
    else:
        fields |= {
            "_waiting": _tensor(snapshot.waiting).to(device),
            "_drop": snapshot.drop,
            "_last_latent": _tensor(snapshot.last_latent)[None].to(device),
            "_lost": snapshot.lost,
            "frames_in": snapshot.consumed,
            "samples_out": snapshot.produced,
        }
    origin = Origin(
        "encoder" if snapshot.direction == "encoder" else "decoder",
        snapshot.start,
        snapshot.codebooks,
        snapshot.weights_sha256,
    )
    return Snapshot(_tensor(snapshot.state).to(device), fields, origin)


def _decoder_only(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "drop": fields["_drop"],
        "lost": fields["_lost"],
        "last_latent": _array(fields["_last_latent"])[0],
    }


def _array(values: Tensor) -> Audio:
    array: Audio = values.detach().cpu().numpy().copy()
    return array


def _tensor(values: Audio) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())
