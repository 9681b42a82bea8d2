"""What both ends of a call must agree on, in the SDP that they exchange."""

from __future__ import annotations

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
MAX_CANDIDATES = 64
MAX_FINGERPRINTS = 8
"""aiortc sends three of the same key, by three digests."""
FINGERPRINT_LETTERS = 200
"""SHA-512 takes 191 with its colons."""
PARSER_ERRORS = (
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError),
    *(StopIteration, RuntimeError),
)
"""How aiortc fails on garbage: its parser was written for friends. A StopIteration within a
coroutine becomes a RuntimeError."""


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
        """aiortc's SDP with all our parameters; aiortc knows but the rate."""
        short = f"a=fmtp:{PAYLOAD_TYPE} rate={self.rate_hz}"
        full = ";".join(f"{name}={value}" for name, value in self.parameters.items())
        return description.replace(short, f"a=fmtp:{PAYLOAD_TYPE} {full}")

    def check_remote(self, description: str) -> int:
        """The most codebooks that the peer's SDP allows.

        Raises LinkError unless it offers one audio stream in this format, and nothing else.
        """
        theirs = _read_parameters(description)
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


@contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Turn what aiortc makes of a bad description into a LinkError."""
    try:
        yield
    except LinkError:
        raise
    except (
        *PARSER_ERRORS,
        *(InvalidAccessError, InvalidStateError, OperationError),
    ) as error:
        reason = str(error) or type(error).__name__
        raise LinkError(f"the {kind} cannot be met: {reason}") from error


def fingerprints(description: str) -> frozenset[str]:
    """Those of the key by which the writer of an SDP will be known in DTLS.

    Each call has a key of its own. Raises LinkError for an SDP without any, with many or long ones.
    """
    lines = (line.strip() for line in description.splitlines())
    found = {line.split()[-1].upper() for line in lines if line.startswith("a=fingerprint:")}
    longest = max(map(len, found), default=0)
    if not 0 < len(found) <= MAX_FINGERPRINTS or longest > FINGERPRINT_LETTERS:
        raise LinkError(
            f"not a session description: it has {len(found)} fingerprints, where 1 to "
            f"{MAX_FINGERPRINTS} of at most {FINGERPRINT_LETTERS} letters belong"
        )
    return frozenset(found)


def _read_parameters(description: str) -> dict[str, Any]:
    """The fmtp parameters of our codec in an SDP."""
    try:
        session = sdp.SessionDescription.parse(description)
        sections = [(media.kind, len(media.ice_candidates)) for media in session.media]
        codecs = [codec for media in session.media for codec in media.rtp.codecs]
    except PARSER_ERRORS as error:
        raise LinkError(f"not a session description: {type(error).__name__}") from None
    if len(sections) != 1 or sections[0][0] != "audio" or sections[0][1] > MAX_CANDIDATES:
        raise LinkError(
            f"a session description of {[kind for kind, _ in sections]}; one audio stream with at "
            f"most {MAX_CANDIDATES} candidates is accepted"
        )
    found = [codec for codec in codecs if codec.mimeType.lower() == MIME_TYPE]
    if not found:
        names = ", ".join(sorted({codec.mimeType for codec in codecs})) or "no codec"
        raise LinkError(f"the other side offers {names}; {MIME_TYPE} is needed")
    return dict(found[0].parameters)
