"""Clients that send at a microphone's pace, and the round trip of each frame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encodec_rt.client.stream import StreamClient
from encodec_rt.errors import LinkError
from encodec_rt.types import Audio, Codes


@dataclass
class Talk:
    """The result of one client."""

    sent: int = 0
    """Frames."""
    round_trip_ms: list[float] = field(default_factory=list)
    """For each frame that came back as audio, from when its last sample was sent."""
    codes: list[Codes] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Of ``codes``."""
    dropped: int = 0
    resumed: int = 0
    refused: str = ""
    """Why the server did not take it, or lost it."""

    @property
    def missing(self) -> int:
        """Frames that did not come back."""
        return self.sent - len(self.round_trip_ms)


async def talk(url: str, audio: Audio, *, delay_s: float = 0.0, **options: Any) -> Talk:
    """Echo ``audio`` [n] frame by frame in real time; ``options`` are StreamClient's.

    Unless they include ``live=False`` nothing waits for the server, which drops what it cannot take
    and says so.
    """
    result = Talk()
    await asyncio.sleep(delay_s)
    try:
        async with StreamClient(url, **{"live": True, **options}) as stream:
            await _converse(stream, audio, result)
            result.dropped = sum(each.count for each in stream.dropped)
            result.resumed = stream.resumed
    except LinkError as error:
        result.refused = str(error)
    return result


async def _converse(stream: StreamClient, audio: Audio, result: Talk) -> None:
    loop = asyncio.get_running_loop()
    hop = stream.welcome["hop"]
    period_s = hop / stream.welcome["rate"]
    sent_s: list[float] = []

    async def speak() -> None:
        begun_s = loop.time()
        for index in range(len(audio) // hop):
            # Relative to the start, not to the previous frame, so delays do not add up.
            await asyncio.sleep(max(0.0, begun_s + index * period_s - loop.time()))
            sent_s.append(loop.time())
            await stream.send_audio(audio[index * hop : (index + 1) * hop])
            result.sent += 1
        await stream.finish()

    speaking = asyncio.create_task(speak())
    try:
        async for frame in stream:
            if frame.codes is not None:
                result.codes.append(frame.codes)
                result.indices.append(frame.index)
            elif frame.index < len(sent_s):
                result.round_trip_ms.append(1000 * (loop.time() - sent_s[frame.index]))
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)


async def talk_at_once(
    url: str, clips: Sequence[Audio], *, rate_hz: float, **options: Any
) -> list[Talk]:
    """All ``clips``, their frames spread over a frame's time as microphones' are."""
    spread = np.random.default_rng(0).uniform(0.0, 320 / rate_hz, len(clips))
    jobs = [
        talk(url, clip, delay_s=float(late_s), **options)
        for clip, late_s in zip(clips, spread, strict=True)
    ]
    return await asyncio.gather(*jobs)
