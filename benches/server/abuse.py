"""The cases that a server must survive: very many sessions, and hostile clients."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benches.environment import Json
from benches.record import Record
from benches.server.cases import add, clips, load
from benches.server.process import KBPS, Server
from encodec_rt.client.load import Talk
from encodec_rt.server.protocol import STREAM_PATH, SUBPROTOCOL, Kind, pack_event, pack_message
from encodec_rt.streaming.codec import Codec

NO_LIMIT = 1e6
"""Requests per second: a limit so high that the server's rate limit plays no part here."""
STEPS = 20
AT_ONCE = 4


async def _open_and_close(session: aiohttp.ClientSession, url: str, until_s: float) -> bool:
    """Open and close a session with one frame; False if the time is up."""
    if time.monotonic() > until_s:
        return False
    query = {"mode": "encode", "bandwidth": f"{KBPS:g}"}
    async with session.ws_connect(url, params=query, protocols=(SUBPROTOCOL,)) as socket:
        await socket.send_bytes(pack_message(Kind.PCM, 0, bytes(640)))
        await socket.send_str(pack_event("CloseStream"))
        async for _ in socket:
            pass
    return True


def churn(record: Record, model: str, opened: int, seconds: float) -> None:
    """Open and close up to ``opened`` sessions, within ``seconds``.

    Records the server's resident memory after each twentieth of them.
    """

    async def some(session: aiohttp.ClientSession, url: str, times: int, until_s: float) -> int:
        done = 0
        for _ in range(times):
            done += await _open_and_close(session, url, until_s)
        return done

    async def run(server: Server) -> tuple[int, list[float]]:
        total, held = 0, []
        begun_s = time.monotonic()
        async with aiohttp.ClientSession() as session:
            for step in range(STEPS):
                times, until_s = opened // STEPS // AT_ONCE, begun_s + seconds * (step + 1) / STEPS
                jobs = (
                    some(session, server.url + STREAM_PATH, times, until_s) for _ in range(AT_ONCE)
                )
                total += sum(await asyncio.gather(*jobs))
                held.append(server.memory_mib)
        return total, held

    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, 2 * AT_ONCE, Path(folder) / "state", requests_per_s=NO_LIMIT)
        total, held = asyncio.run(run(server))
        server.end()
    values: dict[str, Json] = {"memory_mb": [round(each, 1) for each in held]}
    values["grown_mb"] = round(held[-1] - held[1], 1)
    added = record.add({"what": "churn", "opened": total}, {}, values=values)
    print(record.table([added]), flush=True)


def hostile(
    record: Record, codec: Codec, model: str, honest: int, messages: int, handshakes: int,
    seconds: float,
) -> None:  # fmt: skip
    """Run ``honest`` sessions while hostile clients compete for one more slot.

    Those send garbage messages, or invalid handshakes without pause.
    """
    spoken = clips(codec, honest, seconds)

    async def attack(url: str) -> dict[str, Any]:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benches.server.attackers", url, str(messages), str(handshakes),
            f"{seconds - 4.0:g}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _ = await running.communicate()
        answers: dict[str, Any] = json.loads(told)
        return answers

    async def run(url: str) -> tuple[list[Talk], dict[str, Any]]:
        talking = asyncio.create_task(asyncio.to_thread(load, codec, url, spoken, 5.0))
        await asyncio.sleep(1.0)
        told = await attack(url)
        return await talking, told

    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, honest + 1, Path(folder) / "state", requests_per_s=NO_LIMIT)
        talks, told = asyncio.run(run(server.url))
        server.end()
    case: dict[str, Json] = {"what": "hostile", "sessions": honest, **told}
    case["answers"] = json.dumps(told["answers"])
    add(record, case, codec, spoken, talks)
