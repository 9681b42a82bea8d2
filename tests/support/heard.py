"""What a browser heard in a call, and helpers that wait for it."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest

from encodec_rt.web.server import PageServer
from tests.support.chromium import Page
from tests.support.served import RECORDED
from tests.support.tolerances import bound

HALF_SECOND = 12_000
PATIENCE_S = 120.0
"""How long to wait for half a second of a call that other work did not disturb."""


def best_correlation(said: np.ndarray, heard: np.ndarray, enough: float = 1.0) -> float:
    """The best correlation of half a second of ``heard`` with any part of ``said``.

    The search ends at the first half second that exceeds ``enough``.
    """
    kernel = np.hanning(33) / np.hanning(33).sum()
    said, heard = (np.convolve(part, kernel, "same") for part in (said, heard))
    size = 1 << (len(said) + HALF_SECOND).bit_length()
    spectrum = np.fft.rfft(said, size)
    power = np.concatenate([[0.0], np.cumsum(said**2)])
    levels = np.sqrt(power[HALF_SECOND:] - power[:-HALF_SECOND] + 1e-9)[: len(said) - HALF_SECOND]
    best = 0.0
    for start in range(0, len(heard) - HALF_SECOND, HALF_SECOND):
        part = heard[start : start + HALF_SECOND]
        if part.std() < 0.005 or best > enough:
            continue
        products = np.fft.irfft(spectrum * np.conj(np.fft.rfft(part, size)), size)
        shares = products[: len(levels)] / levels
        best = max(best, float(shares.max() / np.sqrt((part**2).sum())))
    return best


async def in_call(page: Page, button: str) -> None:
    await page.until("!!globalThis.encodec?.ready")
    await page.click(button)


async def until_heard(page: Page, said: np.ndarray, kind: str = "heard in a browser") -> None:
    """Wait until ``page`` has been in a call for 5 s and has heard part of ``said``."""
    await page.until(
        "encodec.last?.counts && encodec.saved.length * encodec.frame > 5 * 24000", PATIENCE_S
    )
    best = 0.0
    for _ in range(int(PATIENCE_S / 2)):
        heard = np.frombuffer(base64.b64decode((await page.run(RECORDED))[1]), np.float32)
        enough = bound(kind, "correlation")
        best = await asyncio.to_thread(best_correlation, said, heard[-5 * 24_000 :], enough)
        if best > enough:
            return
        await asyncio.sleep(2)
    pytest.fail(f"the page did not hear what was said; the best correlation is {best:.2f}")


async def until_a_page_waits(server: PageServer) -> None:
    for _ in range(6000):
        if server.waiting:
            return
        await asyncio.sleep(0.01)
    pytest.fail("no page waits for a call")
