"""One rule conceals lost frames in streams, slots, calls, wasmtime and the browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import encodec_rt
from encodec_rt.concealment import CONCEALMENT_GAINS, latent_gain


def test_the_last_latent_is_held_faded_and_then_gone() -> None:
    gains = [latent_gain(lost) for lost in range(9)]
    assert gains == [1.0, 1.0, 1.0, 1.0, 1.0, 0.67, 0.33, 0.0, 0.0]


def test_the_page_fades_as_python_does() -> None:
    script = Path(encodec_rt.__file__).parent / "web/page/conceal.js"
    (gains,) = re.findall(r"GAINS = (\[.*?\])", script.read_text(encoding="utf-8"))
    assert json.loads(gains) == list(CONCEALMENT_GAINS)
