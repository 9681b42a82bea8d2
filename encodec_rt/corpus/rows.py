"""A clip's codes as they are stored, and what they were made by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from encodec_rt.errors import PacketError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes


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
    """The model that made the codes, and what a reader has to know of it."""

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
        """Of what ``codec`` makes. Raises ConfigError for a bandwidth that it lacks."""
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
                f"the codes were made by {self.model} with weights {self.codes_sha256[:16]}, and "
                f"these are {codec.codes_sha256[:16]}; name their folder or file with --model"
            )
