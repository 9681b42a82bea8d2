"""An end of a call in a separate process, as users have it, and a pipe to it."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benches.environment import Json
from benches.link.calls import ModelChoice, Window, calling, heard, listening, speech
from encodec_rt.link.call import Call
from encodec_rt.link.signalling import Limits, SignallingServer
from encodec_rt.streaming.codec import warm_up


@dataclass(frozen=True)
class FarEnd:
    """The end that runs in this process, and its signalling server if it listens."""

    call: Call
    window: Window
    server: SignallingServer | None


@dataclass(frozen=True)
class KnownCall:
    """Everything that an attacker may know about a call."""

    url: str
    token: str
    offer: str
    addresses: list[tuple[str, int]]
    name: str


Work = Callable[[FarEnd], Awaitable[dict[str, Json]]]
"""What an end can run: a module's function, or a partial of one, since it is pickled."""


async def poll(end: FarEnd) -> dict[str, Json]:
    """The figures of the call since the last poll, and the parts of its latency."""
    own: Any = end.call.statistics()["encodecRt"]
    found: dict[str, Json] = {**end.window.poll(), "latency_ms": own["latencyMs"]}
    found |= {"encode_ms": own["encodeMs"], "decode_ms": own["decodeMs"]}
    found |= {"packets_refused": end.call.line.refused, "tasks": len(asyncio.all_tasks())}
    if end.server is not None:
        found["sessions"] = end.server.sessions
    return found


class Far:
    """An end of a call that runs in another process."""

    def __init__(
        self, model: ModelChoice, *, place: tuple[str, str] | None, limits: Limits
    ) -> None:
        """Start it: it calls ``place``, (URL, token), if given; otherwise it listens."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, model, place, limits)
        self._process = context.Process(target=_live, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    async def answer(self) -> Any:
        """Wait for what it sends next. Raises EOFError if it has ended."""
        return await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)

    async def do(self, work: Work) -> dict[str, Json]:
        """Run ``work`` in that process -> its result."""
        self._pipe.send(work)
        result: dict[str, Json] = await self.answer()
        return result

    async def stop(self) -> None:
        """Make it hang up and end."""
        self._pipe.send(None)
        await asyncio.get_running_loop().run_in_executor(None, self._process.join)


@dataclass(frozen=True)
class Apart:
    """A call between two processes."""

    caller: Far
    callee: Far
    dialled: KnownCall

    @classmethod
    async def begin(cls, model: ModelChoice, limits: Limits | None = None) -> Apart:
        """Start both ends, and wait until each hears the other."""
        limits = limits or Limits()
        callee = Far(model, place=None, limits=limits)
        caller = Far(model, place=await callee.answer(), limits=limits)
        dialled: KnownCall = await caller.answer()
        for end in (caller, callee):
            await end.answer()
        return cls(caller, callee, dialled)

    async def end(self) -> None:
        """Hang up."""
        await self.caller.stop()
        await self.callee.stop()


def _live(
    pipe: Connection, model: ModelChoice, place: tuple[str, str] | None, limits: Limits
) -> None:
    asyncio.run(_run(pipe, model, place, limits))


async def _run(
    pipe: Connection, model: ModelChoice, place: tuple[str, str] | None, limits: Limits
) -> None:
    codec = model.load()
    warm_up(codec, model.kbps, "primed")
    # As the command line does: keeps garbage collection short.
    gc.freeze()
    audio = speech(codec.config.sampling_rate)
    server: SignallingServer | None = None
    async with AsyncExitStack() as stack:
        if place is None:
            line = await stack.enter_async_context(listening(codec, model.kbps, audio, limits))
            server = line.server
            pipe.send((line.url, line.token))
            while not line.calls:
                await asyncio.sleep(0.02)
            call = line.calls[0]
        else:
            made = await stack.enter_async_context(calling(codec, model.kbps, audio, *place))
            pipe.send(KnownCall(*place, made.offer, made.addresses, made.name))
            call = made.call
        await heard(call)
        end = FarEnd(call, Window(call.listener, codec.config.hop_length), server)
        pipe.send("heard")
        loop = asyncio.get_running_loop()
        while (work := await loop.run_in_executor(None, pipe.recv)) is not None:
            pipe.send(await work(end))
