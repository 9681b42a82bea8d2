"""A FrameSerializer for pipecat: its WebSocket transports carry codes, 6 kbps instead of 384."""

from __future__ import annotations

from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
)
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.serializers.base_serializer import FrameSerializer

from encodec_rt.agents.coder import AgentCoder
from encodec_rt.errors import InputError, PacketError
from encodec_rt.server.protocol import pack_event
from encodec_rt.streaming.codec import Codec


class CodesSerializer(FrameSerializer):  # type: ignore[misc]
    """Audio as messages of ``encodec-rt.v1``; an interruption as the event ``Interrupted``.

    One for each connection. The caller's end is ``StreamClient``'s counterpart: whatever makes and
    plays such messages, such as a page with the WebAssembly codec. A frame of audio may last up to
    50 ms: leave ``audio_out_10ms_chunks`` at 5 or less.
    """

    def __init__(self, codec: Codec, bandwidth_kbps: float = 6.0) -> None:
        """Raises ConfigError, and InputError for a stereo model."""
        super().__init__()
        self._coder = AgentCoder(codec, bandwidth_kbps)
        self._rate_hz = self._coder.rate_hz

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Return audio at the rate that the pipeline wants."""
        self._rate_hz = setup.audio_in_sample_rate

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """The message of a frame, or None for one that is not for the caller, or not full yet."""
        if isinstance(frame, InterruptionFrame):
            return pack_event("Interrupted")
        if not isinstance(frame, OutputAudioRawFrame):
            return None
        messages = await self._coder.encode(frame.audio, frame.sample_rate, frame.num_channels)
        if len(messages) > 1:
            raise InputError(
                f"{1000 * frame.num_frames / frame.sample_rate:.0f} ms of audio in one frame; "
                "set audio_out_10ms_chunks to 5 or less"
            )
        return messages[0] if messages else None

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """The audio of a message; None for anything else, which does not end the connection."""
        if isinstance(data, str):
            return None
        try:
            pcm = await self._coder.decode(data, self._rate_hz)
        except PacketError:
            return None
        return InputAudioRawFrame(pcm, self._rate_hz, 1) if pcm else None
