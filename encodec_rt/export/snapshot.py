"""A stream's snapshot in the form that the WebAssembly codec takes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from encodec_rt.errors import StateError
from encodec_rt.portable.snapshot import PortableSnapshot
from encodec_rt.streaming.codec import Codec, fingerprint
from encodec_rt.streaming.streams import Snapshot, StreamDecoder, StreamEncoder


def to_portable(codec: Codec, stream: StreamEncoder | StreamDecoder) -> PortableSnapshot:
    """The state of ``stream``, which ``codec`` opened, as a portable snapshot.

    Raises StateError for a stream of blocks that holds back whole frames: the WebAssembly codec
    steps frame by frame and never does.
    """
    snapshot = stream.snapshot()
    fields: dict[str, Any] = dict(zip(_names(stream), snapshot.fields, strict=True))
    encodes = isinstance(stream, StreamEncoder)
    waiting = _array(fields["_waiting"])
    unit = codec.config.hop_length if encodes else 1
    if fields["_begun"] and len(waiting) >= unit:
        raise StateError("this stream holds whole frames back for a block; use block_frames=1")
    return PortableSnapshot(
        direction="encoder" if encodes else "decoder",
        weights_sha256=fingerprint(codec.model),
        codebooks=stream.codebooks,
        state=_array(snapshot.row),
        waiting=waiting,
        begun=fields["_begun"],
        closed=fields["closed"],
        consumed=fields["samples_in" if encodes else "frames_in"],
        produced=fields["frames_out" if encodes else "samples_out"],
        **{} if encodes else _decoder_only(fields),
    )


def from_portable(
    codec: Codec, stream: StreamEncoder | StreamDecoder, snapshot: PortableSnapshot
) -> None:
    """Let ``stream``, which ``codec`` opened, go on from ``snapshot``.

    Raises StateError if the snapshot is of another model or of the other direction.
    """
    encodes = isinstance(stream, StreamEncoder)
    config = codec.config
    snapshot.check(
        "encoder" if encodes else "decoder",
        fingerprint(codec.model),
        stream.runner.now.arena.shape[1],
        config.audio_channels if encodes else config.hidden_size,
    )
    device = torch.device("cpu") if encodes else codec.device
    fields: dict[str, Any] = {
        "closed": snapshot.closed,
        "_waiting": _tensor(snapshot.waiting).to(device),
        "_begun": snapshot.begun,
    }
    if encodes:
        fields |= {"samples_in": snapshot.consumed, "frames_out": snapshot.produced}
    else:
        fields |= {
            "_drop": snapshot.drop,
            "_last_latent": _tensor(snapshot.last_latent)[None].to(device),
            "_lost": snapshot.lost,
            "frames_in": snapshot.consumed,
            "samples_out": snapshot.produced,
        }
    row = _tensor(snapshot.state).to(codec.device)
    stream.restore(Snapshot(row, tuple(fields[name] for name in _names(stream))))


def _names(stream: StreamEncoder | StreamDecoder) -> tuple[str, ...]:
    return ("closed", *stream._SAVED)


def _decoder_only(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "drop": fields["_drop"],
        "lost": fields["_lost"],
        "last_latent": _array(fields["_last_latent"])[0],
    }


def _array(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    array: np.ndarray[Any, np.dtype[np.float32]] = values.detach().cpu().numpy().copy()
    return array


def _tensor(values: np.ndarray[Any, np.dtype[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())
