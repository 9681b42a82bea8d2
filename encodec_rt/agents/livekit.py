"""Audio input and output of a LiveKit agent session, for a caller who sends and receives codes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from livekit import rtc
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities

from encodec_rt.agents.coder import AgentCoder
from encodec_rt.errors import PacketError

AHEAD_S = 0.2
"""How much is sent before it is due; what waits beyond that can still be cancelled."""
PIECE_S = 0.02


class CodesInput(AudioInput):  # type: ignore[misc]
    """What the caller says, from its messages of codes: ``session.input.audio``."""

    def __init__(self, coder: AgentCoder, messages: AsyncIterator[bytes]) -> None:
        """An unreadable message is ignored."""
        super().__init__(label="encodec_rt")
        self._coder, self._messages = coder, messages

    async def __anext__(self) -> rtc.AudioFrame:
        """The audio of the next message. Raises StopAsyncIteration after the last one."""
        rate_hz = self._coder.rate_hz
        while True:
            message = await self._messages.__anext__()
            with suppress(PacketError):
                pcm = await self._coder.decode(message, rate_hz)
                return rtc.AudioFrame(pcm, rate_hz, 1, len(pcm) // 2)


class CodesOutput(AudioOutput):  # type: ignore[misc]
    """What the agent says, as codes sent at the pace of speech: ``session.output.audio``."""

    def __init__(self, coder: AgentCoder, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Create it inside the event loop; ``send`` sends each message to the caller."""
        super().__init__(
            label="encodec_rt",
            capabilities=AudioOutputCapabilities(pause=False),
            sample_rate=coder.rate_hz,
        )
        self._coder, self._send = coder, send
        self._waiting: deque[bytes | None] = deque()
        """Pieces of PCM, and None at the end of a segment."""
        self._something = asyncio.Event()
        self._said_s, self._begun_s = 0.0, 0.0
        self._speaking = asyncio.ensure_future(self._speak())

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Take audio, which may come faster than real time."""
        await super().capture_frame(frame)
        pcm, step = bytes(frame.data), 2 * int(PIECE_S * self._coder.rate_hz)
        self._waiting.extend(pcm[at : at + step] for at in range(0, len(pcm), step))
        self._something.set()

    def flush(self) -> None:
        """The segment ends here."""
        super().flush()
        self._waiting.append(None)
        self._something.set()

    def clear_buffer(self) -> None:
        """Drop what has not been sent yet."""
        interrupted = bool(self._waiting) or self._said_s > 0
        self._waiting.clear()
        if interrupted:
            self._finish(interrupted=True)

    async def aclose(self) -> None:
        """Stop speaking."""
        self._speaking.cancel()
        await asyncio.gather(self._speaking, return_exceptions=True)

    async def _speak(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._waiting:
                piece = self._waiting.popleft()
                if piece is None:
                    await self._sleep_until_said(ahead_s=0.0)
                    if self._said_s:
                        self._finish(interrupted=False)
                    continue
                await self._say(piece)

    async def _say(self, piece: bytes) -> None:
        if not self._said_s:
            self._begun_s = asyncio.get_running_loop().time()
            self.on_playback_started(created_at=time.time())
        self._said_s += len(piece) / 2 / self._coder.rate_hz
        for message in await self._coder.encode(piece, self._coder.rate_hz):
            await self._send(message)
        await self._sleep_until_said(ahead_s=AHEAD_S)

    async def _sleep_until_said(self, *, ahead_s: float) -> None:
        due_s = self._begun_s + self._said_s - ahead_s
        await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))

    def _finish(self, *, interrupted: bool) -> None:
        position_s, self._said_s = self._said_s, 0.0
        if interrupted:
            # What was sent ahead of time has not been heard.
            elapsed_s = asyncio.get_running_loop().time() - self._begun_s
            position_s = min(position_s, elapsed_s)
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)
