"""A copy of the state of a stream or slot, bound to what it may be restored into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from encodec_rt.errors import StateError

Kind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Origin:
    """What a state belongs to: direction, start policy, codebooks and weights."""

    kind: Kind
    start: str
    codebooks: int
    weights_sha256: str

    def check(self, other: Origin) -> None:
        """Raise StateError, naming each difference, if ``other``'s states do not fit here."""
        weights, here = other.weights_sha256[:8], self.weights_sha256[:8]
        differences = {
            f"of the {other.kind}, and this is the {self.kind}": other.kind != self.kind,
            f"of another model, with weights {weights} where these are {here}": weights != here,
            f"of start={other.start!r}, and this is {self.start!r}": other.start != self.start,
            f"of {other.codebooks} codebooks, and this has {self.codebooks}": (
                other.codebooks != self.codebooks
            ),
        }
        named = [text for text, differs in differences.items() if differs]
        if named:
            raise StateError(f"this snapshot is {'; '.join(named)}")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A stream frozen between two pushes, to be given back to ``restore`` any number of times.

    It can be pickled, and restored by another process that has the same weights.
    """

    row: Tensor = field(repr=False)
    """State [N] of one slot, float32."""
    fields: Mapping[str, object] = field(repr=False)
    """What else the stream holds."""
    origin: Origin
