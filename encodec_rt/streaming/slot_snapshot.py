"""The state of one slot of an engine as bytes, for another engine, process or machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from encodec_rt.errors import PacketError, StateError
from encodec_rt.streaming.plan import Plan

VERSION = 1


@dataclass(frozen=True)
class SlotOrigin:
    """What a slot's state belongs to: weights, their layout in memory, start and bandwidth."""

    weights_sha256: str
    layout_sha256: str
    start: str
    codebooks: int

    def check(self, other: SlotOrigin) -> None:
        """Raise StateError, naming each difference, if ``other``'s states do not fit here."""
        mine, theirs = ({k: str(v) for k, v in asdict(each).items()} for each in (self, other))
        named = [
            f"{name.removesuffix('_sha256')} {theirs[name]:.8} where this has {mine[name]:.8}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        if named:
            raise StateError(f"this snapshot is of {'; '.join(named)}")


def layout_sha256(*plans: Plan) -> str:
    """A name for the order and shapes of the state of all layers."""
    shapes = [
        [name, shape] for plan in plans for spec in plan for name, shape in spec.state.items()
    ]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class SlotSnapshot:
    """A slot frozen between two ticks, to be given to ``Engine.restore`` any number of times."""

    encoder: Tensor = field(repr=False)
    """State [N] of the encoder, float32, on the host."""
    decoder: Tensor = field(repr=False)
    """State [M] of the decoder."""
    origin: SlotOrigin

    def to_bytes(self) -> bytes:
        """The snapshot as a safetensors file; reading it runs no code."""
        rows = {"encoder": self.encoder.numpy(), "decoder": self.decoder.numpy()}
        content = {"version": VERSION, **asdict(self.origin)}
        return safetensors.numpy.save(rows, {"encodec_rt.slot": json.dumps(content)})

    @staticmethod
    def from_bytes(data: bytes) -> SlotSnapshot:
        """A snapshot from ``to_bytes``. Raises PacketError for anything else."""
        if not isinstance(data, (bytes, bytearray)):
            raise PacketError(f"a {type(data).__name__} is not the bytes of a slot's snapshot")
        try:
            length = int.from_bytes(data[:8], "little")
            content = json.loads(
                json.loads(data[8 : 8 + length])["__metadata__"]["encodec_rt.slot"]
            )
            version = content.pop("version")
            rows = safetensors.numpy.load(data)
            origin = SlotOrigin(**content)
            encoder, decoder = (rows[name] for name in ("encoder", "decoder"))
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise PacketError(f"{len(data)} bytes that are not a slot's snapshot") from error
        except RecursionError:
            raise PacketError(f"{len(data)} bytes that are not a slot's snapshot") from None
        if version != VERSION:
            raise PacketError(f"a snapshot of version {version!r}; this reads {VERSION}")
        for row in (encoder, decoder):
            if row.dtype != np.float32 or row.ndim != 1 or not np.isfinite(row).all():
                raise PacketError("a snapshot whose state is not a row of finite float32 numbers")
        return SlotSnapshot(torch.from_numpy(encoder), torch.from_numpy(decoder), origin)
