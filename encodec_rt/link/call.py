"""A call over WebRTC: a codec's streams, and a transport that is negotiated by SDP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from encodec_rt.link.channel_transport import ChannelTransport
from encodec_rt.link.peer_transport import NegotiatedTransport
from encodec_rt.link.rtp_transport import RtpTransport
from encodec_rt.link.sdp import Format, is_for_channel
from encodec_rt.link.transports import make_transport
from encodec_rt.sound.realtime import run_in_real_time
from encodec_rt.streaming.codec import Codec, warm_up
from encodec_rt.voice.call import VoiceCall, VoiceOptions
from encodec_rt.voice.recording import CallRecording
from encodec_rt.voice.transport import CallSink, CallSource

LOST_S = 5.0


@dataclass(frozen=True)
class CallOptions(VoiceOptions):
    """How a call is made; both sides choose their own."""

    ice_servers: Sequence[str] = field(default=())
    channel: bool = False
    """Whether to call over a data channel, as web pages do, instead of RTP."""
    real_time: bool = False
    """Whether the codec's thread has real-time scheduling."""


class Call(VoiceCall):
    """One side of one call. Make it, ``offer`` or ``answer``, then ``run`` it to its end."""

    def __init__(
        self,
        codec: Codec,
        source: CallSource,
        sink: CallSink,
        options: CallOptions | None = None,
        recording: CallRecording | None = None,
    ) -> None:
        """Create it inside the event loop; it closes what it is given when it ends."""
        self.options = options or CallOptions()
        kbps = self.options.bandwidth_kbps
        self._form = Format.of(codec, kbps)
        self._first = self._new_transport(self.options.channel)
        self._renewal: NegotiatedTransport | None = None
        self._adopting: asyncio.Task[bool] | None = None
        super().__init__(
            codec.stream_encoder(kbps),
            codec.stream_decoder(kbps),
            source,
            sink,
            self._first,
            self.options,
            in_worker=run_in_real_time if self.options.real_time else None,
            warm_up=partial(warm_up, codec, kbps, "primed"),
            recording=recording,
        )

    async def offer(self) -> str:
        """The SDP to send to the other side."""
        self.prepare()
        return await self._first.offer()

    async def answer(self, offer: str) -> str:
        """The SDP to send back for ``offer``, which says whether the call goes over RTP or over a
        data channel. Raises LinkError for one that cannot be accepted.
        """
        if is_for_channel(offer) is not isinstance(self._first, ChannelTransport):
            self._first = self._new_transport(is_for_channel(offer))
            self.line.begin_with(self._first)
        answer, codebooks = await self._first.answer(offer)
        self.prepare()
        self.limit(codebooks)
        return answer

    async def accept(self, answer: str) -> None:
        """Take the other side's SDP. Raises LinkError for one that does not fit."""
        self.limit(await self._first.accept(answer))

    @property
    def transport(self) -> RtpTransport | ChannelTransport:
        """The transport that carries the call now."""
        assert isinstance(self.line.transport, (RtpTransport, ChannelTransport))
        return self.line.transport

    @property
    def is_lost(self) -> bool:
        """Whether the other side has been silent for so long that another may call instead."""
        return self.silent_s > LOST_S

    async def renewal_offer(self) -> str:
        """The SDP to send to the other side for a new path of this call."""
        self._renewal = self._new_transport(self.options.channel)
        self.line.propose(self._renewal)
        return await self._renewal.offer()

    async def accept_renewal(self, answer: str, seconds: float) -> bool:
        """Take the answer; whether the call moves to the new path within ``seconds``."""
        assert self._renewal is not None, "an offer comes first"
        return await self._adopt(self._renewal, await self._renewal.accept(answer), seconds)

    async def renew(self, offer: str) -> str:
        """The SDP to send back for the offer of a new path, to which the call then moves by itself.

        Raises LinkError for an offer that cannot be accepted.
        """
        transport = self._renewal = self._new_transport(is_for_channel(offer))
        self.line.propose(transport)
        answer, codebooks = await transport.answer(offer)
        adopting = self._adopt(transport, codebooks, self.options.handshake_s)
        self._adopting = asyncio.ensure_future(adopting)
        return answer

    async def drop_unused_renewal(self) -> None:
        """Give up a new path that failed."""
        if self._renewal is not None:
            self.line.drop(self._renewal)
            self._renewal = None

    async def close(self) -> None:
        """Hang up, finish the recording and release everything. Repeating this is harmless."""
        if self._adopting is not None:
            self._adopting.cancel()
        await super().close()

    async def _adopt(self, transport: NegotiatedTransport, codebooks: int, seconds: float) -> bool:
        followed = await self.line.follow(transport, seconds)
        if followed:
            self.limit(codebooks)
        return followed

    def _new_transport(self, channel: bool) -> NegotiatedTransport:
        servers = self.options.ice_servers
        return make_transport(self._form, over_channel=channel, ice_servers=servers)
