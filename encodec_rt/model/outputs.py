"""What EncodecModel returns, read as the results of ``transformers`` are.

The model fills every field; the defaults are those of ``transformers``, whose users may create
results with fewer fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

Scales = Sequence[Tensor | None]


class _Output(Mapping[str, Any]):
    """A result by attribute, by name and by position; fields that are None have no position."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by name, or by position among those that are not None."""
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        """The names of the fields that are not None."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        """How many fields are not None."""
        return sum(1 for _ in self)


@dataclass(eq=False)
class EncodecEncoderOutput(_Output):
    """Codes [chunks, B, Q, T] int64, a scale [B, 1] or None per chunk, and padding frames.

    ``last_frame_pad_length`` counts the frames of the last chunk that are only padding.
    """

    audio_codes: Tensor = None  # type: ignore[assignment]
    audio_scales: Scales = None  # type: ignore[assignment]
    last_frame_pad_length: int = None  # type: ignore[assignment]


@dataclass(eq=False)
class EncodecDecoderOutput(_Output):
    """Audio [B, audio_channels, L]."""

    audio_values: Tensor = None  # type: ignore[assignment]


@dataclass(eq=False)
class EncodecOutput(_Output):
    """Codes [chunks, B, Q, T] int64 and audio [B, audio_channels, L]."""

    audio_codes: Tensor = None  # type: ignore[assignment]
    audio_values: Tensor = None  # type: ignore[assignment]
