"""A headless Chromium, driven through its DevTools protocol with aiohttp."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
)  # fmt: skip
SHOWN = "--disable-features=WebRtcHideLocalIpsWithMdns"
"""Disables mDNS names, which otherwise hide the addresses of a page without a microphone."""
START_S = 60.0
LEVELS = ("error", "warning", "assert")


def executable() -> str:
    """The path of Chromium; skips the test if it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Chromium is not installed (Debian: chromium)")
    return found


class Chromium:
    """A browser process; ``problems`` lists errors and warnings of all its pages.

    ``grant`` allows the microphone, ``hidden`` keeps addresses behind mDNS names.
    """

    def __init__(self, *flags: str, grant: bool = True, hidden: bool = False) -> None:
        answer = ("--use-fake-ui-for-media-stream",) if grant else ("--deny-permission-prompts",)
        self._flags = (*FLAGS, *(() if hidden else (SHOWN,)), *answer, *flags)
        self.problems: list[str] = []

    async def __aenter__(self) -> Chromium:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            executable(), *self._flags, f"--user-data-dir={self._folder.name}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        written = Path(self._folder.name) / "DevToolsActivePort"
        for _ in range(int(START_S / 0.05)):
            if written.exists() and written.read_text().strip():
                break
            await asyncio.sleep(0.05)
        self._port = int(written.read_text().split()[0])
        self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._http.close()
        self._process.terminate()
        await self._process.wait()
        self._folder.cleanup()

    async def open(self, url: str, *, before: str = "") -> Page:
        """Open a new page at ``url``; the script ``before`` runs ahead of its own scripts."""
        where = f"http://127.0.0.1:{self._port}/json/new?about:blank"
        async with self._http.put(where) as response:
            target = await response.json()
        socket = await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        page = Page(socket, self.problems, self)
        for domain in ("Page", "Runtime", "Log"):
            await page.send(f"{domain}.enable")
        if before:
            await page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        await page.send("Page.navigate", url=url)
        return page


class Page:
    """One tab."""

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, problems: list[str], browser: Chromium
    ) -> None:
        self._socket = socket
        self._browser = browser
        self._problems = problems
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def send(self, method: str, **parameters: Any) -> Any:
        """Send a protocol command -> its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        result = await asyncio.wait_for(answer, START_S)
        assert "error" not in result, result
        return result["result"]

    async def run(self, script: str) -> Any:
        """Evaluate an expression -> its value, awaited if it is a promise."""
        result = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, script: str, seconds: float = START_S) -> Any:
        """Wait until an expression is true -> its value."""
        for _ in range(int(seconds / 0.05)):
            value = await self.run(script)
            if value:
                return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page had {self._problems}")

    async def click(self, selector: str) -> None:
        """Click with the mouse, which counts as a user gesture."""
        place = await self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView();"
            " const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left",
                clickCount=1,
            )  # fmt: skip

    async def press(self, key: str) -> None:
        """Press and release a letter key."""
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    async def cover(self) -> None:
        """Open another tab in front of this one."""
        other = await self._browser.open("about:blank")
        await other.send("Page.bringToFront")

    async def screenshot(self, path: Path) -> None:
        """Save a picture of the page."""
        picture = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                break
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self._problems.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded":
                entry = told["params"]["entry"]
                if entry["level"] in LEVELS:
                    self._problems.append(f"{entry['source']}: {entry['text']} {entry.get('url')}")
            elif told["method"] == "Runtime.consoleAPICalled" and told["params"]["type"] in LEVELS:
                self._problems.append(str(told["params"]["args"]))
