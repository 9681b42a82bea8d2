"""The jitter buffer: which frame to play now, given when packets arrived.

Pure: every call is told the time, and nothing here reads a clock. It is similar to WebRTC's NetEq,
but works in whole frames: a histogram of transit times with forgetting gives the delay that pays,
and the buffer holds a frame back or skips one to get there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from encodec_rt.bitstream.packet import Packet
from encodec_rt.errors import ConfigError
from encodec_rt.types import Codes
from encodec_rt.voice.delay import TransitHistogram

AHEAD_S = 2.0
"""How far before its playout a frame may arrive; beyond that its timestamp is not trusted."""
BEHIND_FRAMES = 32
"""How long a frame that arrived too late is kept, in case the playout moves back."""

STEP_PACKETS = 4
STEP_S = 0.05
"""This many late packets in a row, over this time, are not a spike: the path has become slower."""

SHRINK_S = 1.0
"""How long a smaller delay must suffice before a quiet frame is skipped."""
SHRINK_LOUD_S = 3.0
"""The same before a frame of speech is skipped."""
GROW_LOUD_FRAMES = 6
"""How long growth waits for a quiet or missing frame before it interrupts speech."""

Kind = Literal["idle", "frame", "copy", "lost", "silence", "hold"]


@dataclass(frozen=True, eq=False)
class PlayoutSlot:
    """One hop of playout.

    ``kind``: "idle" before anything is to be played; "frame"; "copy", a redundant one with few
    codebooks; "lost"; "silence", which was never sent; "hold", a hop inserted before frame
    ``index`` so that the delay grows.
    ``waited_s`` is the time since the packet came, ``skipped`` the frames left out before it.
    """

    kind: Kind
    index: int = 0
    codes: Codes | None = None
    waited_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class Receipt:
    """The result of inserting a packet: refused, or accepted with the frames that are too late."""

    accepted: bool
    late: list[tuple[int, Codes]] = field(default_factory=list)
    restarted: bool = False


@dataclass(frozen=True, eq=False)
class _Held:
    codes: Codes
    arrived_s: float
    is_copy: bool


class JitterBuffer:
    """Frames in as packets bring them, one slot out per hop."""

    def __init__(
        self,
        *,
        hop: int = 320,
        sampling_rate_hz: int = 24_000,
        floor_ms: float = 10.0,
        ceiling_ms: float = 400.0,
        late_cost_ms: float = 15.0,
    ) -> None:
        """``floor_ms`` and ``ceiling_ms`` bound the delay beyond the fastest packets'.

        ``late_cost_ms`` is the delay worth one percentage point fewer late packets. NetEq takes 20;
        with 15, in whole hops, both delay and late loss came out lower on most traces.
        Raises ConfigError.
        """
        if not 0 <= floor_ms <= ceiling_ms <= AHEAD_S * 1000:
            raise ConfigError(
                f"floor_ms={floor_ms}, ceiling_ms={ceiling_ms}; "
                f"0 <= floor_ms <= ceiling_ms <= {AHEAD_S * 1000:g}"
            )
        self._hop = hop
        self._hop_s = hop / sampling_rate_hz
        self._floor_s, self._ceiling_s = floor_ms / 1000, ceiling_ms / 1000
        self._late_cost_ms = late_cost_ms
        self._ahead = int(AHEAD_S / self._hop_s)
        self._ssrc: int | None = None
        self._probation: tuple[int, int] | None = None
        self._restart(0)

    def _restart(self, timestamp: int) -> None:
        self._last_timestamp, self._last_index = timestamp, 0
        self._frames: dict[int, _Held] = {}
        self._transits = TransitHistogram(late_cost_ms=self._late_cost_ms)
        self._goal_s = 0.0
        self._playing_s: float | None = None
        self._next: int = 0
        self._played = -BEHIND_FRAMES
        self._told: set[int] = set()
        self._silent_from: int | None = None
        self._begun: bool = False
        self._late_run: list[tuple[float, float]] = []
        self._too_long_since_s: float | None = None
        self._too_short_frames = 0

    @property
    def target_ms(self) -> float:
        """The target delay, beyond that of the fastest packets."""
        if not self._transits.count:
            return self._floor_s * 1000
        return max(0.0, self._goal_s - self._transits.quantile(0.01)) * 1000

    @property
    def waiting(self) -> int:
        """Frames that are here and have not been played."""
        return sum(index >= self._next for index in self._frames)

    def forget_source(self) -> None:
        """Restart with the next packet, whoever sends it."""
        self._ssrc = self._probation = None
        self._restart(0)

    def put(
        self, packet: Packet | None, *, sequence: int, timestamp: int, ssrc: int, now_s: float
    ) -> Receipt:
        """Take in a packet with the ``sequence``, ``timestamp`` and ``ssrc`` of its RTP header.

        None says that from this time on nothing is sent, as nobody speaks, until frames follow.

        A packet from another source, or far from the time being played, is refused; if the next one
        continues it, the buffer restarts there. Raises nothing.
        """
        restarted = False
        index = self._index(timestamp) if ssrc == self._ssrc else None
        if index is None:
            if self._ssrc is not None and self._probation != (ssrc, sequence):
                self._probation = ssrc, sequence + 1 & 0xFFFF
                return Receipt(accepted=False)
            restarted = self._ssrc is not None
            self._ssrc = ssrc
            self._restart(timestamp)
            index = 0
        self._probation = None
        self._last_timestamp, self._last_index = timestamp, index
        late: list[tuple[int, Codes]] = []
        if packet is None:
            if self._silent_from is None and index > self._played:
                self._silent_from = index
        else:
            late = self._store(packet, index, now_s)
            if self._silent_from is not None and self._silent_from <= index < self._next:
                self._silent_from = None
        self._measure(now_s - index * self._hop_s, bool(late), now_s)
        return Receipt(accepted=True, late=late, restarted=restarted)

    def get(
        self, now_s: float, *, quiet: bool = False, clock_s: float | None = None
    ) -> PlayoutSlot:
        """What to play in the hop that starts at ``now_s``.

        ``quiet`` says that silence is playing, so that a hop more or less is not noticed.
        ``clock_s`` is when that is asked, if not at ``now_s``: a frame has waited until then.
        """
        if not self._transits.count:
            return PlayoutSlot("idle")
        self._playing_s = now_s - self._next * self._hop_s
        if self._must_hold(quiet):
            return PlayoutSlot("hold" if self._begun else "idle", self._next)
        skipped = int(self._may_skip(now_s, quiet))
        self._next += skipped
        index, held = self._next, self._frames.pop(self._next, None)
        self._next += 1
        self._forget_old()
        if held is None:
            is_silent = self._silent_from is not None and self._silent_from <= index
            missing: Kind = "silence" if is_silent else "lost"
            return PlayoutSlot(missing if self._begun else "idle", index, skipped=skipped)
        if self._silent_from is not None and self._silent_from <= index:
            self._silent_from = None
        self._begun = True
        self._played = index
        self._told.add(index)
        kind: Kind = "copy" if held.is_copy else "frame"
        waited_s = max(0.0, (now_s if clock_s is None else clock_s) - held.arrived_s)
        return PlayoutSlot(kind, index, held.codes, waited_s, skipped)

    def _index(self, timestamp: int) -> int | None:
        """The frame number of a timestamp, or None if it cannot belong to what plays."""
        moved = (timestamp - self._last_timestamp + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
        index = self._last_index + moved // self._hop
        near = self._next - self._ahead <= index <= self._next + self._ahead
        return index if moved % self._hop == 0 and near else None

    def _store(self, packet: Packet, index: int, now_s: float) -> list[tuple[int, Codes]]:
        late: list[tuple[int, Codes]] = []
        for offset, codes in enumerate(packet.codes):
            number = index + offset
            oldest = self._next - BEHIND_FRAMES
            if oldest <= number < self._next and number not in self._told:
                late.append((number, codes[None]))
                self._told.add(number)
            self._keep(number, _Held(codes[None], now_s, is_copy=False))
        if packet.redundancy is not None:
            first = index - packet.redundancy.back
            for offset, codes in enumerate(packet.redundancy.codes):
                self._keep_copy(first + offset, codes[None], now_s)
        return late

    def _keep(self, number: int, held: _Held) -> None:
        known = self._frames.get(number)
        fuller = known is None or held.codes.shape[1] > known.codes.shape[1]
        if number > self._played and number >= self._next - BEHIND_FRAMES and fuller:
            self._frames[number] = held

    def _keep_copy(self, number: int, codes: Codes, now_s: float) -> None:
        oldest = self._next - BEHIND_FRAMES
        if number >= oldest and number not in self._told and number not in self._frames:
            # A frame that arrives only as a copy counts as one that took this long.
            self._transits.add(now_s - number * self._hop_s)
            if number < self._next:
                self._told.add(number)
        self._keep(number, _Held(codes, now_s, is_copy=True))

    def _forget_old(self) -> None:
        oldest = self._next - BEHIND_FRAMES
        for number in [number for number in self._frames if number < oldest]:
            del self._frames[number]
        self._told = {number for number in self._told if number >= oldest}

    def _measure(self, transit_s: float, late: bool, now_s: float) -> None:
        self._transits.add(transit_s)
        self._late_run = [*self._late_run[-15:], (now_s, transit_s)] if late else []
        run = self._late_run
        recent_s = [transit for _, transit in run[-STEP_PACKETS:]]
        stepped = (
            len(run) >= STEP_PACKETS
            and now_s - run[0][0] >= STEP_S
            and min(recent_s) > self._transits.quantile(0.95)
        )
        if stepped:
            self._transits.shift(float(np.median(recent_s)) - self._transits.quantile(0.5))
            self._late_run = []
        self._aim(transit_s)
        if stepped:
            # Back to the first frame not yet played, so that late frames are heard after all.
            back = int((now_s - self._goal_s) / self._hop_s)
            self._next = min(self._next, max(back, self._played + 1, self._next - BEHIND_FRAMES))

    def _aim(self, transit_s: float) -> None:
        """Set the target delay, a whole number of hops away from the present one."""
        if self._playing_s is None:
            self._goal_s = transit_s + self._floor_s
            return
        fastest_s = self._transits.quantile(0.01)
        least = math.ceil((fastest_s + self._floor_s - self._playing_s) / self._hop_s)
        most = (fastest_s + self._ceiling_s - self._playing_s) // self._hop_s
        hops = np.arange(least, max(least, int(most)) + 1, dtype=np.float64)
        self._goal_s = self._transits.best(self._playing_s + hops * self._hop_s, self._goal_s)

    def _must_hold(self, quiet: bool) -> bool:
        if self._playing_s is None or self._playing_s > self._goal_s - self._hop_s / 2:
            self._too_short_frames = 0
            return False
        self._too_short_frames += 1
        free = quiet or not self._begun or self._next not in self._frames
        return free or self._too_short_frames > GROW_LOUD_FRAMES

    def _may_skip(self, now_s: float, quiet: bool) -> bool:
        """Whether to skip the next frame."""
        playing_s = now_s - self._next * self._hop_s
        if not self._begun or playing_s < self._goal_s + self._hop_s / 2:
            self._too_long_since_s = None
            return False
        if self._too_long_since_s is None:
            self._too_long_since_s = now_s
        enough_s = now_s - self._too_long_since_s
        if self._next not in self._frames:
            # Concealing a frame only to be late for the following ones would be wasteful.
            return enough_s > SHRINK_S / 2
        if quiet:
            return enough_s > SHRINK_S
        if enough_s > SHRINK_LOUD_S:
            self._too_long_since_s = now_s
            return True
        return False
