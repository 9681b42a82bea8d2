"""The facts that encodec-rt info tells: as text, and as numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias


class Described(NamedTuple):
    """A fact displayed as ``text``, of which a program gets ``values`` instead."""

    text: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


Fact: TypeAlias = "str | int | Described"
Facts: TypeAlias = "dict[str, Fact]"


def for_programs(facts: Facts) -> dict[str, Any]:
    """The facts as one JSON object."""
    values: dict[str, Any] = {}
    for name, fact in facts.items():
        values |= fact.values if isinstance(fact, Described) else {name.replace(" ", "_"): fact}
    return values


def described_audio(sampling_rate: int, channels: int) -> Described:
    """What kind of audio codes are of."""
    return Described(
        f"{sampling_rate} Hz, {channels} channel(s)",
        {"rate_Hz": sampling_rate, "channels": channels},
    )


def described_codebooks(codebooks: int, size: int) -> Described:
    """How many codebooks, and of how many entries each."""
    return Described(f"{codebooks} of {size}", {"codebooks": codebooks, "codebook_size": size})
