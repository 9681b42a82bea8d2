"""The facts that encodec-rt info tells: as text, and as numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias


class Shown(NamedTuple):
    """A fact displayed as ``text``, of which a program gets ``values`` instead."""

    text: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


Fact: TypeAlias = "str | int | Shown"
Facts: TypeAlias = "dict[str, Fact]"


def for_programs(facts: Facts) -> dict[str, Any]:
    """The facts as one JSON object."""
    values: dict[str, Any] = {}
    for name, fact in facts.items():
        values |= fact.values if isinstance(fact, Shown) else {name.replace(" ", "_"): fact}
    return values


def shown_audio(sampling_rate: int, channels: int) -> Shown:
    """What kind of audio codes are of."""
    return Shown(
        f"{sampling_rate} Hz, {channels} channel(s)",
        {"rate_Hz": sampling_rate, "channels": channels},
    )


def shown_codebooks(codebooks: int, size: int) -> Shown:
    """How many codebooks, and of how many entries each."""
    return Shown(f"{codebooks} of {size}", {"codebooks": codebooks, "codebook_size": size})
