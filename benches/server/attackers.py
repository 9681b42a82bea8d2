"""Hostile clients, in a separate process so that they do not slow down the honest ones.

    python -m benches.server.attackers URL MESSAGES HANDSHAKES SECONDS

The answers that they got are printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import aiohttp
import numpy as np

from benches.server.process import KBPS
from encodec_rt.server.protocol import STREAM_PATH, SUBPROTOCOL, Kind, pack_event, pack_message

_WRONG = ({"mode": "sing"}, {"bandwidth": "1e9"}, {"frame": "-1"}, {"token": "a"}, {"mode": "echo"})
_AT_ONCE = 50
"""Messages that are sent before the answers are read."""


class Attackers:
    """Sends hostile messages and handshakes, and counts the answers."""

    def __init__(self, url: str, messages: int, handshakes: int) -> None:
        self._url, self._messages, self._handshakes = url + STREAM_PATH, messages, handshakes
        self._random = np.random.default_rng(0)
        self.answers: Counter[str] = Counter()
        self.sent = self.tried = 0

    async def run(self, seconds: float) -> None:
        """Attack until everything is sent or the time is up."""
        async with aiohttp.ClientSession() as session:
            parts = [self._garbage(session), self._garbage(session), self._knock(session)]
            tasks = [asyncio.ensure_future(part) for part in parts]
            await asyncio.wait(tasks, timeout=seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _message(self) -> bytes:
        """Garbage, or a message that looks valid but is not."""
        kind = int(self._random.integers(4))
        some = self._random.bytes(int(self._random.integers(1, 60)))
        if kind == 0:
            return some
        if kind == 1:
            return pack_message(Kind.CODES, int(self._random.integers(1 << 32)), some)
        if kind == 2:
            return pack_message(Kind.PCM, int(self._random.integers(1 << 32)), some)
        return pack_message(Kind.PCM, 0, some + some)

    async def _garbage(self, session: aiohttp.ClientSession) -> None:
        query = {"mode": "duplex", "bandwidth": f"{KBPS:g}"}
        while self.sent < self._messages:
            try:
                async with session.ws_connect(
                    self._url, params=query, protocols=(SUBPROTOCOL,)
                ) as socket:
                    await self._insult(socket)
            except (aiohttp.ClientError, ConnectionError) as error:
                self.answers[str(getattr(error, "status", type(error).__name__))] += 1
                await asyncio.sleep(0.02)

    async def _insult(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while self.sent < self._messages and not socket.closed:
            for _ in range(_AT_ONCE):
                await socket.send_bytes(self._message())
                self.sent += 1
            await socket.send_str(pack_event("Sing"))
            try:
                while True:
                    told = await asyncio.wait_for(socket.receive(), 0.001)
                    if told.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                        self.answers[f"closed {told.data}"] += 1
                        return
            except asyncio.TimeoutError:
                continue

    async def _knock(self, session: aiohttp.ClientSession) -> None:
        while self.tried < self._handshakes:
            query = _WRONG[int(self._random.integers(len(_WRONG)))]
            self.tried += 1
            try:
                async with session.get(self._url, params=query) as answer:
                    self.answers[f"handshake {answer.status}"] += 1
            except aiohttp.ClientError as error:
                self.answers[f"handshake {type(error).__name__}"] += 1


def main() -> None:
    """Attack, and print the counts."""
    url, messages, handshakes, seconds = sys.argv[1:]
    attack = Attackers(url, int(messages), int(handshakes))
    asyncio.run(attack.run(float(seconds)))
    told = {"messages": attack.sent, "handshakes": attack.tried, "answers": dict(attack.answers)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
