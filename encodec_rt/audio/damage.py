"""Damage in a source that is read nevertheless: where, and how much is missing."""

from __future__ import annotations

from encodec_rt.errors import InputError

_MAX_PLACES = 5


class Damage:
    """Collects what a decoder could not read, or refuses it immediately if ``strict``."""

    def __init__(self, name: str, *, strict: bool) -> None:
        self.position_s = 0.0
        """Seconds of audio decoded so far, the position of the next gap."""
        self._name = name
        self._strict = strict
        self._gaps: dict[float, float] = {}
        self.remarks: list[str] = []
        """Remarks, apart from gaps."""

    @property
    def found(self) -> bool:
        """Whether anything was wrong."""
        return bool(self._gaps or self.remarks)

    @property
    def lost_s(self) -> float:
        """Seconds known to be missing."""
        return sum(self._gaps.values())

    def gap(self, reason: str, lost_s: float = 0.0) -> None:
        """Note that ``lost_s`` of audio, 0 if unknown, is missing here. Raises InputError."""
        if self._strict:
            raise InputError(
                f"{self._name} is damaged at {self.position_s:.2f} s: {reason}; "
                "leave out --strict to use what can be decoded"
            )
        self._gaps[self.position_s] = self._gaps.get(self.position_s, 0.0) + lost_s

    def remark(self, text: str) -> None:
        """Note ``text``, which follows the source's name. Raises InputError if strict."""
        if self._strict:
            raise InputError(f"{self._name} {text}; leave out --strict to use what is there")
        self.remarks.append(text)

    def warnings(self) -> list[str]:
        """One sentence on the gaps, if there were any, and the remarks."""
        said = [f"{self._name} {remark}" for remark in self.remarks]
        if self._gaps:
            places = [
                f"{at_s:.2f} s ({lost_s:.3f} s lost)" if lost_s else f"{at_s:.2f} s"
                for at_s, lost_s in list(self._gaps.items())[:_MAX_PLACES]
            ]
            more = len(self._gaps) - len(places)
            rest = f" and {more} more places" if more else ""
            said.insert(
                0, f"{self._name} is damaged: audio is missing at {', '.join(places)}{rest}"
            )
        return said
