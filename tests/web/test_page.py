"""The page in a real browser: it plays through the codec what Python's codec would make of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import soundfile

from encodec_rt.portable import PortableCodec
from encodec_rt.web.page_files import POLICY
from encodec_rt.web.server import PageServer
from tests.support.chromium import Chromium, Page
from tests.support.models import SPEECH, snr_db
from tests.support.served import RECORDED, model

TOKEN = "t" * 40
RUNNING = "globalThis.encodec?.last?.hops > 150"


def on_page(
    work: Callable[[Page, str, PageServer], Awaitable[None]],
    *flags: str,
    grant: bool = True,
    before: str = "",
) -> None:
    """Serve, open the page, and let ``work`` use it; there must be no problem in the end."""

    async def run() -> None:
        server = PageServer(model())
        port = await server.start("127.0.0.1", 0, None)
        try:
            async with Chromium(*flags, grant=grant) as browser:
                address = f"http://127.0.0.1:{port}/"
                page = await browser.open(address, before=before)
                await page.until(
                    "!!(globalThis.encodec?.ready || document.querySelector('.wrong'))"
                )
                await work(page, address, server)
                assert browser.problems == []
        finally:
            await server.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flag that lets a fake microphone say a clip, over and over."""
    clip = tmp_path_factory.mktemp("microphone") / "clip.wav"
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(clip, samples[: 4 * rate], rate)
    return f"--use-file-for-fake-audio-capture={clip}"


def assert_heard_is_what_python_makes(recorded: list[Any]) -> None:
    said, heard = (np.frombuffer(base64.b64decode(text), np.float32) for text in recorded[:2])
    assert len(said) == 320 * recorded[2], "every hop since the start was recorded"
    codec = PortableCodec(model())
    codes = codec.stream_encoder(6.0).push(said)
    wanted = codec.stream_decoder(6.0).push(codes)
    assert np.abs(said).max() > 0.02
    # The same module computed both: bits, not decibels.
    assert np.array_equal(wanted, heard), f"{snr_db(wanted, heard):.1f} dB"


def test_a_microphone_is_heard_through_the_codec_as_python_computes_it(
    microphone: str, tmp_path: Path
) -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        # The model was asked for ahead of the scripts, and once.
        [model_file] = await page.run(
            "performance.getEntriesByType('resource').filter((e) => e.name.includes('/model-'))"
            ".map((e) => e.initiatorType)"
        )
        assert model_file == "link"
        assert server.files.bytes_sent < 13e6
        await page.click("#microphone")
        await page.until(RUNNING)
        assert await page.run("encodec.context.sampleRate") == 24_000
        assert_heard_is_what_python_makes(await page.run(RECORDED))
        # Both spectrograms show something, and every row of the table a time.
        assert await page.run("document.querySelectorAll('#latency td').length") >= 8
        assert "Device" in await page.run("document.querySelector('#latency').textContent")
        await page.press("b")
        assert await page.run("document.querySelector('#ear').ariaPressed") == "true"
        await page.press("b")
        assert await page.run("encodec.ear") == "codec"
        await page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        await page.click("#stop")
        await page.until("encodec.context === null")

    on_page(work, microphone)


def test_the_example_plays_without_a_microphone_and_lost_frames_are_concealed() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#clip")
        await page.until("globalThis.encodec?.last?.hops > 40")
        await page.run(
            "document.querySelector('#loss').value = 30;"
            "document.querySelector('#loss').dispatchEvent(new Event('input'))"
        )
        await page.until("encodec.last.lost", 20)
        # Fewer codebooks: the radio of the lowest bandwidth, by keyboard.
        await page.run("document.querySelector('input[name=kbps]').click()")
        before = await page.run("encodec.last.hops")
        await page.until(f"encodec.last.hops > {before} + 40")

    on_page(work)


def test_speakers_are_fed_by_a_call_within_the_page_as_long_as_they_are_chosen() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#clip")
        await page.until("globalThis.encodec?.last?.hops > 10")
        await page.click("#speakers")
        await page.until("encodec.speakers?.audio.currentTime > 1")
        assert await page.run("!encodec.speakers.audio.paused")
        await page.click("#speakers")
        await page.until("encodec.speakers === null")
        await page.click("#speakers")
        await page.until("encodec.speakers?.audio.currentTime > 0")
        await page.click("#stop")
        await page.until("encodec.speakers === null")

    on_page(work)


def test_firefox_is_not_asked_for_the_latency_that_may_hang_it() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#clip")
        # The table is drawn with the first hop and with every 38th that follows.
        await page.until("globalThis.encodec?.last?.hops > 40")
        table = await page.run("document.querySelector('#latency').textContent")
        assert "mixer" in table
        assert "Device" not in table

    firefox = """
      const agent = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0";
      Object.defineProperty(Navigator.prototype, "userAgent", { get: () => agent });
      Object.defineProperty(AudioContext.prototype, "outputLatency", {
        get() { throw new Error("asked"); },
      });
    """
    on_page(work, before=firefox)


def test_a_blocked_microphone_is_explained_and_the_example_still_plays() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#microphone")
        said = await page.until("document.querySelector('.wrong')?.textContent")
        assert "blocked" in said
        await page.click("#clip")
        await page.until("globalThis.encodec?.last?.hops > 10")

    on_page(work, grant=False)


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (
            "WebAssembly.validate = () => false",
            "This browser is too old: it lacks WebAssembly SIMD. Please update it.",
        ),
        (
            "delete globalThis.AudioWorkletNode",
            "This browser is too old: it lacks audio worklets. Please update it.",
        ),
        (
            "Object.defineProperty(globalThis, 'isSecureContext', { value: false })",
            "Browsers let a page process sound only over HTTPS or on this machine: open this page "
            "with https://, or as localhost on the machine that serves it.",
        ),
    ],
    ids=["no SIMD", "no audio worklets", "no HTTPS"],
)
def test_what_the_page_cannot_do_without_is_said_in_one_sentence(
    before: str, sentence: str
) -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        assert await page.run("document.querySelector('.wrong').textContent") == sentence
        assert await page.run("document.querySelector('#clip').disabled")

    on_page(work, before=before)


def test_a_large_model_computes_in_a_worker_until_the_microphone_goes_away(microphone: str) -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#microphone")
        await page.until(RUNNING)
        assert await page.run("encodec.worker !== null")
        assert_heard_is_what_python_makes(await page.run(RECORDED))
        # The device goes away: everything is let go, and the page says what to do.
        await page.run("encodec.stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
        said = await page.until("document.querySelector('.wrong')?.textContent")
        assert said == "The microphone is gone. Plug it in and start again."
        await page.until("encodec.worker === null")

    on_page(work, microphone, before="globalThis.encodecMaxInsideBytes = 0")


def test_a_hidden_page_keeps_playing(microphone: str) -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#microphone")
        await page.until("globalThis.encodec?.last?.hops > 20")
        await page.cover()
        await page.until("document.hidden")
        before = await page.run("encodec.last.hops")
        await page.until(f"encodec.last.hops > {before} + 75")
        assert_heard_is_what_python_makes(await page.run(RECORDED))

    on_page(work, microphone)


def test_a_context_that_refuses_the_rate_is_resampled() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#clip")
        await page.until("globalThis.encodec?.last?.hops > 100")
        assert await page.run("encodec.context.sampleRate") == 48_000
        assert "resamples" in await page.run("document.querySelector('#status').textContent")
        assert_heard_is_what_python_makes(await page.run(RECORDED))

    refuses = """{
      const Real = AudioContext;
      globalThis.AudioContext = class extends Real {
        constructor(options) {
          if (options.sampleRate) throw new DOMException("no such rate", "NotSupportedError");
          super({ ...options, sampleRate: 48000 });
        }
      };
    }"""
    on_page(work, before=refuses)


def test_a_microphone_that_only_the_devices_own_rate_takes_is_resampled(microphone: str) -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#microphone")
        await page.until(RUNNING)
        assert await page.run("encodec.context.sampleRate") != 24_000
        assert "resamples" in await page.run("document.querySelector('#status').textContent")
        assert_heard_is_what_python_makes(await page.run(RECORDED))

    # As Firefox did: "Connecting AudioNodes from AudioContexts with different sample-rate".
    refuses = """{
      const { createMediaStreamSource } = AudioContext.prototype;
      AudioContext.prototype.createMediaStreamSource = function (stream) {
        if (this.sampleRate === 24000) throw new DOMException("rates", "NotSupportedError");
        return createMediaStreamSource.call(this, stream);
      };
    }"""
    on_page(work, microphone, before=refuses)


def test_a_sound_device_that_goes_away_is_told() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        await page.click("#clip")
        await page.until("globalThis.encodec?.last?.hops > 10")
        await page.run("encodec.context.dispatchEvent(new Event('error'))")
        said = await page.until("document.querySelector('.wrong')?.textContent")
        assert said == "The sound device is gone. Plug it in and start again."
        assert await page.run("encodec.context === null")

    on_page(work)


def test_a_page_that_is_opened_again_takes_the_model_from_its_cache() -> None:
    async def work(page: Page, address: str, server: PageServer) -> None:
        before = server.files.bytes_sent
        await page.send("Page.navigate", url=f"{address}?again")
        await page.until("location.search === '?again' && !!globalThis.encodec?.ready")
        assert server.files.bytes_sent - before < 1e5

    on_page(work)


def test_the_server_names_files_by_content_and_guards_what_it_gives() -> None:
    async def run() -> None:
        server = PageServer(model(), token=TOKEN)
        port = await server.start("127.0.0.1", 0, None)
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http:
            async with http.get(base + "/") as page:
                text = await page.text()
                assert page.headers["Content-Security-Policy"] == POLICY
                assert page.headers["Cache-Control"] == "no-cache"
                # A browser would ask without the token, and be refused.
                assert "Link" not in page.headers
            assert "@" not in text
            place = text.split('data-model="')[1].split('"')[0]
            script = text.split('src="')[1].split('"')[0]
            async with http.get(base + script) as answer:
                assert "immutable" in answer.headers["Cache-Control"]
                assert answer.content_type == "text/javascript"
            async with http.get(base + place) as answer:
                assert answer.status == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            async with http.get(base + place, headers=bearer) as answer:
                assert await answer.read() == model()
            for path in (
                "/../pyproject.toml",
                "/app/main.js",
                "/%2e%2e%2fpyproject.toml",
                "/codec.c",
            ):
                async with http.get(base + path) as answer:
                    assert answer.status == 404
                    assert "Content-Security-Policy" in answer.headers
            for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
                async with http.get(base + "/", headers=headers) as answer:
                    assert answer.status == 403
            async with http.post(base + "/", data=b"x") as answer:
                assert answer.status == 405
            statuses = []
            for _ in range(80):
                async with http.get(base + script) as answer:
                    statuses.append(answer.status)
            assert 429 in statuses
        await server.close()

    asyncio.run(run())
