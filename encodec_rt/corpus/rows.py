"""A clip's codes as they are stored, and the model that made them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from encodec_rt.errors import PacketError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes

INFO_KEY = b"encodec_rt"
"""Of the metadata of a Parquet file: what its codes were made by."""
OWN_COLUMNS = ("id", "codes", "frames", "codebooks", "samples", "sampling_rate", "scales")


@dataclass(frozen=True, eq=False)
class StoredClip:
    """The codes uint16 [frames, Q] of the clip ``id``, which stand for ``samples`` per channel.

    ``samples`` is None where only codes were stored: as many as the frames hold. ``scales`` has a
    value for each segment of a model that normalises.
    """

    id: str
    codes: Codes
    samples: int | None
    scales: tuple[float, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CodesInfo:
    """The model that made the codes, and what a reader must know about it."""

    model: str
    codes_sha256: str
    sampling_rate: int
    audio_channels: int
    hop_length: int
    codebook_size: int
    codebooks: int
    bandwidth_kbps: float
    start: str = "exact"

    @staticmethod
    def of(codec: Codec, bandwidth_kbps: float) -> CodesInfo:
        """For codes of ``codec``. Raises ConfigError for a bandwidth that it lacks."""
        config = codec.config
        return CodesInfo(
            model=codec.name,
            codes_sha256=codec.codes_sha256,
            sampling_rate=config.sampling_rate,
            audio_channels=config.audio_channels,
            hop_length=config.hop_length,
            codebook_size=config.codebook_size,
            codebooks=config.codebooks_for(bandwidth_kbps),
            bandwidth_kbps=bandwidth_kbps,
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes, name: str) -> CodesInfo:
        """What ``to_json`` wrote into the file ``name``. Raises PacketError."""
        try:
            held = json.loads(text)
            return CodesInfo(**{one.name: held[one.name] for one in fields(CodesInfo)})
        except (ValueError, KeyError, TypeError) as error:
            raise PacketError(f"{name} does not say what its codes were made by: {error}") from None

    def check(self, codec: Codec) -> None:
        """Raise PacketError unless ``codec`` can decode these codes."""
        if self.codes_sha256 != codec.codes_sha256:
            raise PacketError(
                f"the codes were made by {self.model} with weights {self.codes_sha256[:16]}, but "
                f"these are {codec.codes_sha256[:16]}; give the right ones with --model"
            )


@dataclass(frozen=True)
class SinkContext:
    """What every sink knows: its folder, the codes' origin, and the metadata columns by type."""

    folder: Path
    info: CodesInfo
    columns: Mapping[str, Any]
    codec: Codec


def stored_name(name: str) -> str:
    """The name of a metadata column in the output, where some names are taken."""
    return f"source_{name}" if name in OWN_COLUMNS else name


def described(row: StoredClip, info: CodesInfo) -> dict[str, Any]:
    """Everything in a row except its codes, and the model that made them, for JSON."""
    meta = {stored_name(name): value for name, value in row.meta.items()}
    scales = {"scales": list(row.scales)} if row.scales else {}
    own = {"id": row.id, "samples": row.samples, "sampling_rate": info.sampling_rate}
    return {**meta, **own, **scales, "encodec_rt": json.loads(info.to_json())}


def as_npy(row: StoredClip) -> bytes:
    """The codes as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(row.codes), allow_pickle=False)
    return file.getvalue()
