"""A decoder that always plays: lost frames are concealed in the latent domain.

Every hop is one decoder step, so that the decoder's state moves with time whatever is lost. The
ladder: a coarse copy of the frame, if one came; the last latent, as it is and then fading; then
comfort noise, which is latents of the background heard earlier, in random order. A frame that comes
just too late still puts the state right: the decoder goes back and runs the last hops again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from encodec_rt.streaming.frames import FrameDecoder
from encodec_rt.streaming.snapshot import Snapshot
from encodec_rt.streaming.streams import CONCEALMENT_GAINS
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.activity import EnergyDetector

REPAIR_FRAMES = 3
"""How many hops back a late frame is of use; each costs a decoder step at once."""
NOISE_FRAMES = 16
FADE_S = 0.005
FADE_AFTER = 2
"""After how many lost frames the return is cross-faded.

One lost frame is bridged by the decoder as smoothly, and a fade there takes 5 ms of what came:
0.07 of PESQ at 5 % random loss, while fading after two or more costs nothing measurable.
"""


@dataclass(frozen=True, eq=False)
class _State:
    decoder: Snapshot
    last: Tensor
    lost: int


@dataclass(frozen=True, eq=False)
class _Hop:
    """A hop that was played: which frame, its codes if there were any, and the state before."""

    index: int | None
    codes: Codes | None
    before: _State | None


class Concealer:
    """A stream decoder for frames that may be missing, coarse or late."""

    def __init__(
        self,
        decoder: FrameDecoder,
        *,
        gains: Sequence[float] = CONCEALMENT_GAINS,
        seed: int = 0,
    ) -> None:
        """``gains`` weigh the last latent in the 1st, 2nd, ... lost frame against the noise."""
        self._decoder = decoder
        self._start = decoder.snapshot()
        self._gains = tuple(gains)
        self._random = np.random.default_rng(seed)
        hop, rate_hz = decoder.config.hop_length, decoder.config.sampling_rate
        self._fade = np.linspace(0, 1, round(FADE_S * rate_hz), dtype=np.float32)
        self._fading: Audio | None = None
        latent = decoder.silence_latent()
        self._noise: deque[Tensor] = deque([latent], maxlen=NOISE_FRAMES)
        self._last = latent
        self._lost = 0
        self._history: deque[_Hop] = deque(maxlen=REPAIR_FRAMES)
        self._detector = EnergyDetector(frame_s=hop / rate_hz, hangover_s=0.0)
        self.quiet = True
        """Whether the last hop played was background noise."""

    @property
    def is_noise(self) -> bool:
        """Whether the last hop was comfort noise alone."""
        return self._lost > len(self._gains)

    def play(self, codes: Codes | None, index: int | None = None) -> Audio:
        """One hop of audio float32 [hop] or [channels, hop], from codes [1, Q] or from None.

        ``index`` is the frame's number, by which ``repair`` finds it. Raises InputError for codes
        that the model does not have.
        """
        return self.played(self._decoder.push_latents(self.next_latent(codes, index)))

    def next_latent(self, codes: Codes | None, index: int | None = None) -> Tensor:
        """The latent [1, hidden_size] of the next hop, for who steps the decoder in a batch.

        What the decoder makes of it goes to ``played``; the two are the halves of ``play``.
        """
        latents = None if codes is None else self._decoder.dequantize(codes)
        if codes is not None and self._lost >= FADE_AFTER and self._fading is None:
            self._fading = self._continued()
        return self._next(codes, latents, index)

    def played(self, audio: Audio) -> Audio:
        """What is heard of ``audio``, which the decoder made of ``next_latent``."""
        if self._lost:
            self.quiet = self.is_noise
        else:
            self.quiet = not self._detector.is_active(audio)
            if self.quiet:
                self._noise.append(self._last)
        return self._cross_fade(audio)

    def restart(self) -> None:
        """Begin anew with the next frame, as the far encoder does; the noise heard so far stays."""
        self._decoder.restore(self._start)
        self._last, self._lost = self._decoder.silence_latent(), 0
        self._fading = None
        self._history.clear()

    def repair(self, late: Sequence[tuple[int, Codes]]) -> int:
        """Put the state right with frames that came too late; how many were of use.

        What was played stays as it was; what follows is what would have followed had they come in
        time, cross-faded from what was being played.
        """
        come = dict(late)
        hops = list(self._history)
        useful = [at for at, hop in enumerate(hops) if hop.before is not None and hop.index in come]
        if not useful:
            return 0
        first = hops[useful[0]].before
        assert first is not None
        self._fading = self._decoder.push_latents(self._advance(None))
        self._go_back(first)
        self._history = deque(hops[: useful[0]], maxlen=REPAIR_FRAMES)
        for hop in hops[useful[0] :]:
            codes = hop.codes
            if codes is None and hop.index is not None:
                codes = come.get(hop.index)
            latents = None if codes is None else self._decoder.dequantize(codes)
            self._decoder.push_latents(self._next(codes, latents, hop.index))
        return len(useful)

    def _next(self, codes: Codes | None, latents: Tensor | None, index: int | None) -> Tensor:
        before = _State(self._decoder.snapshot(), self._last, self._lost) if codes is None else None
        latent = self._advance(latents)
        self._history.append(_Hop(index, codes, before))
        return latent

    def _advance(self, latents: Tensor | None) -> Tensor:
        """The next latent: ``latents`` if the frame came, else a rung of the ladder."""
        if latents is not None:
            self._last, self._lost = latents, 0
            return latents
        gain = self._gains[self._lost] if self._lost < len(self._gains) else 0.0
        self._lost += 1
        noise = self._noise[int(self._random.integers(len(self._noise)))]
        return gain * self._last + (1 - gain) * noise

    def _continued(self) -> Audio:
        """What the next hop would be, were its frame lost too."""
        before = _State(self._decoder.snapshot(), self._last, self._lost)
        audio = self._decoder.push_latents(self._advance(None))
        self._go_back(before)
        return audio

    def _go_back(self, state: _State) -> None:
        self._decoder.restore(state.decoder)
        self._last, self._lost = state.last, state.lost

    def _cross_fade(self, audio: Audio) -> Audio:
        if self._fading is None:
            return audio
        audio, ramp = audio.copy(), self._fade
        span = np.s_[..., : len(ramp)]
        audio[span] = ramp * audio[span] + (1 - ramp) * self._fading[span]
        self._fading = None
        return audio
