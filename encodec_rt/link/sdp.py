"""What both ends of a call must agree on, in the SDP that they exchange."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiortc import sdp
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError

from encodec_rt.bitstream.packet import MAX_FRAMES
from encodec_rt.errors import LinkError
from encodec_rt.streaming.codec import Codec

MIME_TYPE = "audio/vnd.encodec-rt"
"""Not registered with IANA; the vendor tree is where such names live (RFC 6838)."""
PAYLOAD_TYPE = 118
PROTOCOL = "encodec_rt/1"
"""What a data channel's protocol string begins with; the parameters of the format follow."""
ATTRIBUTE = "encodec-rt"
"""The attribute of a data channel's SDP that has the protocol string, of either side."""
MAX_CANDIDATES = 64
_HIDDEN = re.compile(
    r"(a=candidate:\S{1,32} \d{1,3} udp \d{1,10} )[0-9A-Za-z-]{1,63}\.local"
    r"( \d{1,5} typ host[^\n]*\n)",
    re.IGNORECASE,
)
MAX_FINGERPRINTS = 8
"""aiortc sends three of the same key, by three digests."""
FINGERPRINT_LETTERS = 200
"""SHA-512 takes 191 with its colons."""
PARSER_ERRORS = (
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError),
    *(StopIteration, RuntimeError),
)
"""How aiortc's parser fails on garbage. A StopIteration within a coroutine becomes a
RuntimeError."""


@dataclass(frozen=True)
class Format:
    """What both ends must agree on: it travels as the fmtp line of the SDP."""

    model: str
    rate_hz: int
    hop: int
    bits: int
    codebooks: int

    @staticmethod
    def of(codec: Codec, bandwidth_kbps: float) -> Format:
        """What a call of ``codec`` at up to this bandwidth needs. Raises ConfigError."""
        config = codec.config
        return Format(
            model=codec.codes_sha256[:16],
            rate_hz=config.sampling_rate,
            hop=config.hop_length,
            bits=config.codebook_nbits,
            codebooks=config.codebooks_for(bandwidth_kbps),
        )

    @property
    def parameters(self) -> dict[str, str]:
        """The fmtp parameters, named in the style of RFC 7587."""
        return {
            "rate": str(self.rate_hz),
            "model": self.model,
            "hop": str(self.hop),
            "bits": str(self.bits),
            "maxcodebooks": str(self.codebooks),
            "maxframes": str(MAX_FRAMES),
        }

    def describe(self, description: str) -> str:
        """aiortc's SDP with all our parameters, of which aiortc knows only the rate."""
        short = f"a=fmtp:{PAYLOAD_TYPE} rate={self.rate_hz}"
        full = ";".join(f"{name}={value}" for name, value in self.parameters.items())
        return description.replace(short, f"a=fmtp:{PAYLOAD_TYPE} {full}")

    @property
    def protocol(self) -> str:
        """The protocol string of a data channel in this format."""
        parameters = (f"{name}={value}" for name, value in self.parameters.items())
        return ";".join((PROTOCOL, *parameters))

    def describe_channel(self, description: str) -> str:
        """The SDP of a data channel with our parameters, which others ignore (RFC 8866, 5.13)."""
        return f"{description}a={ATTRIBUTE}:{self.protocol}\r\n"

    def check_remote(self, description: str) -> int:
        """The most codebooks that the peer's SDP allows.

        Raises LinkError unless it offers one audio stream in this format, and nothing else.
        """
        return self._check(_read_parameters(description))

    def check_channel(self, description: str) -> int:
        """``check_remote`` for the SDP of one data channel."""
        _read_sections(description, "application")
        lines = description.splitlines()
        found = [line.strip() for line in lines if line.startswith(f"a={ATTRIBUTE}:")]
        if len(found) != 1:
            raise LinkError(
                f"the other side's data channel is not one of {PROTOCOL}: its description has "
                f"{len(found)} attributes a={ATTRIBUTE}, where 1 is needed"
            )
        return self.check_protocol(found[0].partition(":")[2])

    def check_protocol(self, protocol: str) -> int:
        """``check_remote`` for the protocol string of a data channel."""
        name, *given = protocol.split(";")
        if name != PROTOCOL:
            raise LinkError(f"the other side speaks {name[:40]!r}; {PROTOCOL} is needed")
        parts = (each.partition("=") for each in given)
        return self._check({name: value for name, _, value in parts})

    def _check(self, theirs: dict[str, Any]) -> int:
        for name in ("model", "rate", "hop", "bits"):
            ours = self.parameters[name]
            if theirs.get(name) != ours:
                raise LinkError(
                    f"the other side has {name}={theirs.get(name)!r} and this one {ours!r}; "
                    "both ends of a call need the same model"
                )
        most = str(theirs.get("maxcodebooks"))
        if not most.isdecimal() or not 1 <= int(most) <= 32:
            raise LinkError(f"the other side accepts maxcodebooks={most!r}; 1 to 32 are possible")
        return int(most)


def is_for_channel(description: str) -> bool:
    """Whether an SDP asks for a data channel, which ``check_channel`` then reads."""
    return any(line.startswith("m=application ") for line in description.splitlines())


@contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Turn aiortc's exceptions for a bad description into a LinkError."""
    try:
        yield
    except LinkError:
        raise
    except (
        *PARSER_ERRORS,
        *(InvalidAccessError, InvalidStateError, OperationError),
    ) as error:
        reason = str(error) or type(error).__name__
        raise LinkError(f"the {kind} cannot be accepted: {reason}") from error


def fingerprints(description: str) -> frozenset[str]:
    """The fingerprints of the key with which the writer of an SDP will appear in DTLS.

    Each call has its own key. Raises LinkError for an SDP without any, or with many or long ones.
    """
    lines = (line.strip() for line in description.splitlines())
    found = {line.split()[-1].upper() for line in lines if line.startswith("a=fingerprint:")}
    longest = max(map(len, found), default=0)
    if not 0 < len(found) <= MAX_FINGERPRINTS or longest > FINGERPRINT_LETTERS:
        raise LinkError(
            f"not a session description: it has {len(found)} fingerprints; accepted: 1 to "
            f"{MAX_FINGERPRINTS} of at most {FINGERPRINT_LETTERS} letters"
        )
    return frozenset(found)


def with_seen_address(offer: str, address: str) -> str:
    """Add a candidate with ``address`` for each whose address is an mDNS name.

    A browser hides its addresses from a page that may not use the microphone
    (draft-ietf-mmusic-mdns-ice-candidates), and the names cannot be resolved on every network.
    ``address`` is where the offer came from. Even where it is not the hidden one, a candidate that
    can be tried keeps ICE waiting for the browser's own checks, which show the right one.
    """
    return _HIDDEN.sub(rf"\g<0>\g<1>{address}\g<2>", offer) if address else offer


def _read_sections(description: str, kind: str) -> list[Any]:
    """The codecs of an SDP; raises LinkError unless it has one section, of ``kind``."""
    try:
        session = sdp.SessionDescription.parse(description)
        sections = [(media.kind, len(media.ice_candidates)) for media in session.media]
        codecs = [codec for media in session.media for codec in media.rtp.codecs]
    except PARSER_ERRORS as error:
        raise LinkError(f"not a session description: {type(error).__name__}") from None
    if len(sections) != 1 or sections[0][0] != kind or sections[0][1] > MAX_CANDIDATES:
        one = "audio stream" if kind == "audio" else "data channel"
        raise LinkError(
            f"a session description of {[kind for kind, _ in sections]}; one {one} with at "
            f"most {MAX_CANDIDATES} candidates is accepted"
        )
    return codecs


def _read_parameters(description: str) -> dict[str, Any]:
    """The fmtp parameters of our codec in an SDP."""
    codecs = _read_sections(description, "audio")
    found = [codec for codec in codecs if codec.mimeType.lower() == MIME_TYPE]
    if not found:
        names = ", ".join(sorted({codec.mimeType for codec in codecs})) or "no codec"
        raise LinkError(f"the other side offers {names}; {MIME_TYPE} is needed")
    return dict(found[0].parameters)
