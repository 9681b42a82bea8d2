"""The transports that a call over WebRTC may have."""

from __future__ import annotations

from collections.abc import Sequence

from encodec_rt.link.channel_transport import ChannelTransport
from encodec_rt.link.peer_transport import NegotiatedTransport
from encodec_rt.link.rtp_transport import RtpTransport
from encodec_rt.link.sdp import Format


def make_transport(
    form: Format, *, over_channel: bool, ice_servers: Sequence[str] = ()
) -> NegotiatedTransport:
    """A transport that is not connected yet: RTP, or a data channel as web pages use."""
    make = ChannelTransport if over_channel else RtpTransport
    return make(form, ice_servers)
