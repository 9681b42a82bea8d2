"""A call over WebRTC: a codec's streams, and a transport that is negotiated by SDP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from encodec_rt.link.rtp_transport import RtpTransport
from encodec_rt.link.sdp import Format
from encodec_rt.sound.realtime import run_in_real_time
from encodec_rt.streaming.codec import Codec, warm_up
from encodec_rt.voice.call import CallSink, CallSource, VoiceCall, VoiceOptions


@dataclass(frozen=True)
class CallOptions(VoiceOptions):
    """How a call is made; both sides choose their own."""

    ice_servers: Sequence[str] = field(default=())
    real_time: bool = False
    """Whether the codec's thread has real-time scheduling."""


class Call(VoiceCall):
    """One side of one call. Make it, ``offer`` or ``answer``, then ``run`` it to its end."""

    def __init__(
        self, codec: Codec, source: CallSource, sink: CallSink, options: CallOptions | None = None
    ) -> None:
        """To be made inside the event loop. ``source`` and ``sink`` are closed with the call."""
        self.options = options or CallOptions()
        config, kbps = codec.config, self.options.bandwidth_kbps
        form = Format(
            model=codec.codes_sha256[:16],
            rate_hz=config.sampling_rate,
            hop=config.hop_length,
            bits=config.codebook_nbits,
            codebooks=config.codebooks_for(kbps),
        )
        self.transport: RtpTransport = RtpTransport(form, self.options.ice_servers)
        super().__init__(
            codec.stream_encoder(kbps),
            codec.stream_decoder(kbps),
            source,
            sink,
            self.transport,
            self.options,
            in_worker=run_in_real_time if self.options.real_time else None,
            warm_up=partial(warm_up, codec, kbps, "primed"),
        )

    async def offer(self) -> str:
        """The SDP to send to the other side."""
        self.prepare()
        return await self.transport.offer()

    async def answer(self, offer: str) -> str:
        """The SDP to send back for ``offer``. Raises LinkError for one that cannot be met."""
        answer, codebooks = await self.transport.answer(offer)
        self.prepare()
        self.limit(codebooks)
        return answer

    async def accept(self, answer: str) -> None:
        """Take the other side's SDP. Raises LinkError for one that does not fit."""
        self.limit(await self.transport.accept(answer))
