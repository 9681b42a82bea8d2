"""Work that goes wrong; in a module of its own, which a new process imports quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from encodec_rt.corpus.units import Unit
from encodec_rt.errors import InputError


def dying(order: str) -> Callable[[Unit], str]:
    """Work that ends its process at the unit it is told to, or raises there."""

    def work(unit: Unit) -> str:
        if unit.index == 2 and order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.index == 2:
            raise InputError("bad unit")
        return unit.name

    return work
