"""Two pages call each other, by way of the server's room and a data channel."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
import soundfile

from encodec_rt.link.channel_transport import ChannelTransport
from encodec_rt.link.sdp import Format
from encodec_rt.web import meeting
from encodec_rt.web.server import PageServer
from tests.support.chromium import Chromium
from tests.support.heard import in_call, until_a_page_waits, until_heard
from tests.support.models import SPEECH
from tests.support.served import model

TOKEN = "t" * 40


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
                await until_a_page_waits(server)
                second = await browser.open(address, before=before)
                await in_call(second, "#send-clip")
                for page in (first, second):
                    await until_heard(page, samples)
                # Garbage on the channel is counted and does nothing else.
                await second.run("encodec.call.path.channel.send(new Uint8Array([1, 2, 3]))")
                await second.run("encodec.call.path.channel.send('text')")
                await first.until("encodec.call.refused === 1 && encodec.call.path.garbage === 1")
                # What was counted is told in words, on the page in front.
                table = "document.querySelector('#latency').textContent"
                await second.until(f"{table}.includes('Packets received')")
                # What a call fixes cannot be changed in it.
                assert await second.run("document.querySelector('#bandwidths').disabled")
                # Each hears how its packets fared.
                for page in (first, second):
                    await page.until("encodec.call.reports.roundTripS !== null")
                await second.click("#stop")
                await first.until(
                    "document.querySelector('.wrong')?.textContent.includes('hung up')"
                )
                assert browser.problems == []
        finally:
            await server.close()

    asyncio.run(run())


def test_a_page_refuses_another_model_in_one_sentence_and_tells_the_other_side() -> None:
    stranger = Format("0" * 16, 24_000, 320, 10, 8)

    async def run() -> None:
        server = PageServer(model())
        port = await server.start("127.0.0.1", 0, None)
        caller = ChannelTransport(stranger)
        try:
            async with Chromium() as browser, aiohttp.ClientSession() as http:
                page = await browser.open(f"http://127.0.0.1:{port}/")
                await in_call(page, "#send-clip")
                await until_a_page_waits(server)
                async with http.ws_connect(f"ws://127.0.0.1:{port}/meet") as socket:
                    await socket.send_json({})
                    assert (await socket.receive_json())["role"] == "offer"
                    offer = {"type": "offer", "sdp": await caller.offer()}
                    await socket.send_json({"description": offer})
                    told = await socket.receive_json()
                said = await page.until("document.querySelector('.wrong')?.textContent")
                for text in (said, told["refused"]):
                    assert "another model or version" in text
                assert browser.problems == []
        finally:
            await caller.close()
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


def test_a_page_that_waits_in_vain_is_told_and_one_that_answers_no_ping_loses_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        server = PageServer(model())
        port = await server.start("127.0.0.1", 0, None)
        url = f"ws://127.0.0.1:{port}/meet"
        async with aiohttp.ClientSession() as http:
            monkeypatch.setattr(meeting, "WAIT_S", 0.2)
            async with http.ws_connect(url) as socket:
                await socket.send_json({})
                told = await asyncio.wait_for(socket.receive(), 60)
                assert (told.data, told.extra) == (4002, "nobody else came; call again")
            monkeypatch.setattr(meeting, "WAIT_S", 600.0)
            monkeypatch.setattr(meeting, "PING_S", 0.2)
            async with http.ws_connect(url, autoping=False) as socket:
                await socket.send_json({})
                await until_a_page_waits(server)
                while server.waiting:
                    await asyncio.wait_for(socket.receive(), 60)
        await server.close()

    asyncio.run(run())
