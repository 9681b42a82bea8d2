"""Two pages in two browsers call each other, by way of the server's meeting and a data channel."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import numpy as np
import pytest
import soundfile

from encodec_rt.web.server import PageServer
from tests.support.chromium import Chromium, Page
from tests.support.models import SPEECH
from tests.web.test_page import RECORDED, model

TOKEN = "t" * 40
SECONDS = 5


def best_correlation(said: np.ndarray, heard: np.ndarray) -> float:
    """The correlation of a second of ``heard`` with any place of ``said``, below 1.5 kHz."""
    kernel = np.hanning(33) / np.hanning(33).sum()
    said, heard = (np.convolve(part, kernel, "same") for part in (said, heard))
    best = 0.0
    for start in range(0, len(heard) - 24_000, 12_000):
        part = heard[start : start + 24_000]
        if part.std() < 0.005:
            continue
        size = 1 << (len(said) + len(part)).bit_length()
        spectrum = np.fft.rfft(said, size) * np.conj(np.fft.rfft(part, size))
        products = np.fft.irfft(spectrum, size)[: len(said) - len(part)]
        power = np.concatenate([[0.0], np.cumsum(said**2)])
        levels = np.sqrt((power[len(part) :] - power[: -len(part)])[: len(products)] + 1e-9)
        best = max(best, float((products / levels).max() / np.sqrt((part**2).sum())))
    return best


async def in_call(page: Page, button: str) -> None:
    await page.until("!!globalThis.encodec?.ready")
    await page.click(button)


@pytest.mark.parametrize("inside", [True, False], ids=["in the audio thread", "in a worker"])
def test_two_pages_hear_each_other(inside: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = f"globalThis.encodecMaxInsideBytes = {16e6 if inside else 0}"
    clip = tmp_path_factory.mktemp("microphone") / "clip.wav"
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(clip, samples, rate)

    async def run() -> None:
        server = PageServer(model())
        port = await server.start("127.0.0.1", 0, None)
        try:
            async with Chromium(f"--use-file-for-fake-audio-capture={clip}") as browser:
                address = f"http://127.0.0.1:{port}/"
                first = await browser.open(address, before=before)
                await in_call(first, "#call")
                await first.until(
                    "document.querySelector('#status').textContent.includes('Waiting')"
                )
                second = await browser.open(address, before=before)
                await in_call(second, "#send-clip")
                for page in (first, second):
                    await page.until("encodec.last?.counts?.frames > 75 * 4")
                counts = [await page.run("encodec.last.counts") for page in (first, second)]
                recorded = [await page.run(RECORDED) for page in (first, second)]
                # Garbage on the channel is counted and does nothing else.
                await second.run("encodec.call.channel.send(new Uint8Array([1, 2, 3]))")
                await first.until("encodec.last.counts.refused === 1")
                await second.click("#stop")
                await first.until(
                    "document.querySelector('.wrong')?.textContent.includes('hung up')"
                )
                assert browser.problems == []
        finally:
            await server.close()
        heard = [np.frombuffer(base64.b64decode(side[1]), np.float32) for side in recorded]
        correlations = [best_correlation(samples, part) for part in heard]
        assert min(correlations) > 0.8, (correlations, counts)
        for side in counts:
            # How many come late is the machine's matter; that they come, and are heard, is ours.
            assert side["refused"] == 0
            assert side["received"] >= 75 * 3, counts

    asyncio.run(run())


def test_a_page_with_another_bandwidth_is_refused_in_one_sentence() -> None:
    async def run() -> None:
        server = PageServer(model())
        port = await server.start("127.0.0.1", 0, None)
        try:
            async with Chromium() as browser:
                pages = [await browser.open(f"http://127.0.0.1:{port}/") for _ in range(2)]
                for number, page in enumerate(pages):
                    await page.until("!!globalThis.encodec?.ready")
                    await page.run(
                        f"document.querySelectorAll('input[name=kbps]')[{number}].click()"
                    )
                    await page.click("#send-clip")
                    await page.until("encodec.call !== null")
                said = [
                    await page.until("document.querySelector('.wrong')?.textContent")
                    for page in pages
                ]
                assert any("another model, bandwidth or version" in text for text in said), said
                assert browser.problems == []
        finally:
            await server.close()

    asyncio.run(run())


def test_a_room_has_two_places_and_asks_for_the_token() -> None:
    async def run() -> None:
        server = PageServer(model(), token=TOKEN)
        port = await server.start("127.0.0.1", 0, None)
        url = f"ws://127.0.0.1:{port}/meet"
        async with aiohttp.ClientSession() as http:
            for hello in ("{}", "[]", "no JSON", json.dumps({"token": "x" * 40})):
                async with http.ws_connect(url) as socket:
                    await socket.send_str(hello)
                    assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
            sockets = []
            for _ in range(3):
                socket = await http.ws_connect(url)
                await socket.send_json({"token": TOKEN})
                sockets.append(socket)
                await asyncio.sleep(0.1)
            first, second, third = sockets
            assert (await first.receive_json())["role"] == "answer"
            assert (await second.receive_json())["role"] == "offer"
            refused = await third.receive()
            assert refused.type == aiohttp.WSMsgType.CLOSE
            assert refused.data == 4000
            await second.send_str("anything")
            assert await first.receive_str() == "anything"
            await first.send_bytes(b"bytes end it")
            assert (await first.receive()).type == aiohttp.WSMsgType.CLOSE
            for socket in sockets:
                await socket.close()
            async with http.ws_connect(url) as again:
                await again.send_json({"token": TOKEN})
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(url, headers={"Origin": "https://evil.example"})
        await server.close()

    asyncio.run(run())
