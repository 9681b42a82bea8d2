"""The sending end of a call, without clock and network: codes in, packets out."""

from __future__ import annotations

from collections.abc import Callable

from encodec_rt.config import EncodecConfig
from encodec_rt.types import Codes
from encodec_rt.voice.bitrate import PacketPlan, RateController
from encodec_rt.voice.packetizer import Outgoing, Packetizer


class Sender:
    """Packs frames as the rate controller plans, and sends what is full."""

    def __init__(
        self,
        config: EncodecConfig,
        controller: RateController,
        send: Callable[[Outgoing, float], None],
        *,
        on_plan: Callable[[float, PacketPlan], None] | None = None,
    ) -> None:
        """``send`` gets each packet and its time; ``on_plan`` is called when the plan changes."""
        self.controller = controller
        self._send, self._on_plan = send, on_plan
        self._config, self._most = config, controller.codebooks
        self._packetizer = self._new_packetizer()
        self._plan: PacketPlan | None = None

    def limit(self, codebooks: int) -> None:
        """Send at most ``codebooks`` codebooks, as the other side takes no more."""
        self.controller = self.controller.fresh(min(codebooks, self._most))

    def restart(self) -> None:
        """Restart, on another path."""
        self.controller = self.controller.fresh(self.controller.codebooks)
        self._packetizer, self._plan = self._new_packetizer(), None

    def push(self, codes: Codes, now_s: float, *, active: bool = True) -> None:
        """The next frame, ``codes`` uint16 [Q]; ``active`` is False for silence."""
        plan = self.controller.plan(now_s)
        if self._on_plan is not None and plan != self._plan:
            self._on_plan(now_s, plan)
        self._plan = plan
        for packet in self._packetizer.push(codes, plan, active=active):
            self.controller.on_sent(len(packet.payload), now_s)
            self._send(packet, now_s)

    def _new_packetizer(self) -> Packetizer:
        return Packetizer(hop=self._config.hop_length, bits=self._config.codebook_nbits)
