"""A stream between two pushes as bytes, which Python, wasmtime and a browser can read.

docs/web.md has the byte layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from encodec_rt.errors import StateError
from encodec_rt.types import Floats

_HEADER = struct.Struct("<4sBBBBIIIIIIQQ32s")
_MAGIC = b"ERTS"
_VERSION = 1
_DIRECTIONS = ("encoder", "decoder")
STARTS = ("primed", "exact", "zero")


@dataclass(frozen=True, eq=False)
class PortableSnapshot:
    """One stream's whole state.

    ``state`` [N] is its row of the arena; ``waiting`` [n, channels] is audio that does not fill a
    frame yet, or [n, hidden_size] latents of an "exact" decoder that has not begun. ``consumed``
    and ``produced`` count an encoder's samples and frames, or a decoder's frames and samples. Only
    decoders have the rest: ``drop``, the samples still to be cut from their beginning, ``lost``,
    the frames lost in a row, and ``last_latent`` [hidden_size], which a lost frame repeats.
    """

    direction: str
    weights_sha256: str
    start: str
    codebooks: int
    state: Floats
    waiting: Floats
    begun: bool
    closed: bool
    consumed: int
    produced: int
    drop: int = 0
    lost: int = 0
    last_latent: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def to_bytes(self) -> bytes:
        """The snapshot as bytes, little-endian."""
        width = self.waiting.shape[1]
        header = _HEADER.pack(
            _MAGIC, _VERSION, _DIRECTIONS.index(self.direction),
            self.begun | self.closed << 1, STARTS.index(self.start), self.codebooks,
            len(self.state), len(self.waiting), width, self.drop, self.lost,
            self.consumed, self.produced, bytes.fromhex(self.weights_sha256),
        )  # fmt: skip
        arrays = (self.state, self.waiting, self.last_latent)
        return header + b"".join(np.ascontiguousarray(part, "<f4").tobytes() for part in arrays)

    @staticmethod
    def from_bytes(content: bytes) -> PortableSnapshot:
        """The snapshot that ``to_bytes`` wrote. Raises StateError for anything else."""
        if len(content) < _HEADER.size:
            raise StateError(f"{len(content)} bytes are not a snapshot of a stream")
        (magic, version, direction, flags, start, codebooks, state, waiting, width, drop, lost,
         consumed, produced, sha256) = _HEADER.unpack_from(content)  # fmt: skip
        known = direction < len(_DIRECTIONS) and start < len(STARTS) and flags < 4
        if magic != _MAGIC or version != _VERSION or not known:
            raise StateError(
                "these bytes are not a snapshot of a stream, or are one of another version"
            )
        floats = state + waiting * width + (width if direction else 0)
        if len(content) != _HEADER.size + 4 * floats:
            raise StateError(
                f"a snapshot of {len(content)} bytes; its header announces "
                f"{_HEADER.size + 4 * floats}"
            )
        numbers = np.frombuffer(content, "<f4", offset=_HEADER.size).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise StateError("this snapshot holds numbers that are not finite")
        row, rest, last = np.split(numbers, (state, state + waiting * width))
        return PortableSnapshot(
            direction=_DIRECTIONS[direction],
            weights_sha256=sha256.hex(),
            start=STARTS[start],
            codebooks=codebooks,
            state=row,
            waiting=rest.reshape(waiting, width),
            begun=bool(flags & 1),
            closed=bool(flags & 2),
            consumed=consumed,
            produced=produced,
            drop=drop,
            lost=lost,
            last_latent=last,
        )

    def check(
        self,
        direction: str,
        start: str,
        codebooks: int,
        weights_sha256: str,
        state: int,
        width: int,
        most: int,
    ) -> None:
        """Raise StateError unless it fits such a stream.

        ``state`` is its number of floats; fewer than ``most`` rows of ``width`` may be waiting.
        """
        given = (self.direction, self.weights_sha256, len(self.state), self.waiting.shape[1])
        if given != (direction, weights_sha256, state, width):
            raise StateError("this snapshot is of another model or of the other direction")
        if not (len(self.waiting) < most and len(self.last_latent) in (0, width)):
            raise StateError(
                f"a snapshot with {len(self.waiting)} rows waiting; accepted: below {most}"
            )
        if (self.start, self.codebooks) != (start, codebooks):
            raise StateError(
                f"this snapshot is of start={self.start!r} and {self.codebooks} codebooks, and "
                f"this stream of start={start!r} and {codebooks}"
            )
