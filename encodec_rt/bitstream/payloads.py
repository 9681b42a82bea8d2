"""The coded layers of a packet, and coding a packet while its frames arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from encodec_rt.types import Codes


class Payload(NamedTuple):
    """The bytes of one layer; ``raw`` ones are packed codes, whatever the stream's coding is."""

    raw: bool
    data: bytes


class PacketEncoder(Protocol):
    """A packet that is coded while its frames arrive, in pieces of any size, to the same bytes."""

    def push(self, codes: Codes) -> None:
        """Append ``codes`` [frames, codebooks], as many codebooks as before. Raises InputError."""

    def finish(self) -> list[Payload]:
        """One payload per layer."""


class WholePacket:
    """A packet whose frames are collected and then coded together, for fast coders."""

    def __init__(self, encode: Callable[[Codes], list[Payload]]) -> None:
        self._encode = encode
        self._pieces: list[Codes] = []

    def push(self, codes: Codes) -> None:
        """Append ``codes`` [frames, codebooks]."""
        self._pieces.append(codes)

    def finish(self) -> list[Payload]:
        """One payload per layer."""
        return self._encode(np.concatenate(self._pieces))
