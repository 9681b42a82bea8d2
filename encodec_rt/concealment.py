"""How a lost frame is concealed: by the last latent, held and then faded. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

CONCEALMENT_GAINS = (1.0, 1.0, 1.0, 1.0, 1.0, 0.67, 0.33)
"""The gain of the last latent in the 1st, 2nd, ... lost frame; then 0.

It is held for 67 ms and faded over 40, as in Lyra. A gain of 0.7 instead of 1 gave 0.024 more PESQ
on fixed traces (between 0.015 and 0.032 with 95 % confidence: six clips, 1 to 20 % lost at random
and in bursts), but weak sounds then fall silent sooner: at 10 % in bursts the longest dropout in
eight calls was 53 ms rather than 40. Extrapolating, alternating or averaging the last latents was
no better, and a steep decay was worse in long bursts. In a call, comfort noise replaces what fades
(``voice.conceal``).
"""


def latent_gain(lost: int, gains: Sequence[float] = CONCEALMENT_GAINS) -> float:
    """The gain of the last latent in a lost frame that comes after ``lost`` others."""
    return gains[lost] if lost < len(gains) else 0.0
