"""The container ``.encodec``: its headers as bytes (docs/format.md has the layout).

Needs numpy alone. ``container_packet`` has its packets; ``container_writer`` and
``container_reader`` put them into Ogg pages and take them out again; ``editing`` scales, cuts and
joins streams as they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from encodec_rt.bitstream.coding import NO_HASH, Coding
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, InputError, PacketError

HEAD_MAGIC = b"EnCdHead"
TAGS_MAGIC = b"EnCdTags"
VERSION = 1
STARTS = ("exact", "primed", "zero")
PRE_ROLL_S = 1.0
"""Audio decoded and discarded after a seek, until the decoder's state has forgotten its start."""

MAX_PACKET_BYTES = 1 << 20
MAX_CODES_PER_PACKET = 1 << 20
MAX_LAYERS = 128

_HEAD = struct.Struct("<8sBBBBIIIIIIBB32s32s")
_SCALED = 1
_MAX_U32 = 2**32 - 1


@dataclass(frozen=True)
class StreamHeader:
    """The identification header: everything that reading, cutting and scaling need to know.

    ``layers`` are the codebooks that each layer adds. ``segment`` and ``stride`` are 0 for a model
    that streams frame by frame. ``pre_skip`` samples are decoded first and discarded.
    """

    sampling_rate: int
    channels: int
    hop: int
    codebook_size: int
    layers: tuple[int, ...]
    segment: int = 0
    stride: int = 0
    scaled: bool = False
    start: str = "exact"
    pre_skip: int = 0
    coding: Coding = Coding.RAW
    codes_sha256: bytes = NO_HASH
    coder_sha256: bytes = NO_HASH

    def __post_init__(self) -> None:
        """Raise PacketError, in one sentence, for an impossible stream."""
        numbers = (self.sampling_rate, self.hop, self.segment, self.stride, self.pre_skip)
        if min(numbers) < 0 or max(numbers) > _MAX_U32 or not self.sampling_rate or not self.hop:
            raise PacketError(
                f"a stream of {self.sampling_rate} Hz with {self.hop} samples per frame"
            )
        if self.channels not in (1, 2):
            raise PacketError(f"a stream of {self.channels} channels; EnCodec has 1 or 2")
        if not 2 <= self.codebook_size <= 1 << 16 or self.codebook_size & (self.codebook_size - 1):
            raise PacketError(
                f"codebooks of {self.codebook_size}; accepted: powers of two to 65536"
            )
        if not 1 <= len(self.layers) <= MAX_LAYERS or min(self.layers) < 1:
            raise PacketError("a stream needs 1 to 128 layers with at least one codebook each")
        if bool(self.segment) != bool(self.stride) or self.stride > self.segment:
            raise PacketError(f"segments of {self.segment} samples, one every {self.stride}")
        if self.scaled and not self.segment:
            raise PacketError("scales belong to segments, and this stream has none")
        if self.max_frames * self.codebooks > MAX_CODES_PER_PACKET:
            raise PacketError(
                f"{self.max_frames} frames of {self.codebooks} codebooks in a packet; "
                f"at most {MAX_CODES_PER_PACKET} codes are accepted"
            )

    @property
    def codebooks(self) -> int:
        """Codebooks of all layers together."""
        return sum(self.layers)

    @property
    def bits(self) -> int:
        """Bits of a packed code."""
        return (self.codebook_size - 1).bit_length()

    @property
    def max_frames(self) -> int:
        """The most frames in a packet: those of a second, or of a segment."""
        return max(1, -(-(self.segment or self.sampling_rate) // self.hop))

    @property
    def pre_roll(self) -> int:
        """Samples to decode before the target of a seek."""
        if self.segment:
            return self.segment - self.stride
        return math.ceil(PRE_ROLL_S * self.sampling_rate / self.hop) * self.hop

    def kbps(self, codebooks: int) -> float:
        """The bit rate of that many codebooks before coding."""
        return 1e-3 * codebooks * self.bits * math.ceil(self.sampling_rate / self.hop)

    def duration(self, frames: int) -> int:
        """Samples that are final after a packet of ``frames`` frames that is not the last."""
        return self.stride or frames * self.hop

    @classmethod
    def for_model(
        cls, config: EncodecConfig, codebooks: int, *, start: str, codes_sha256: bytes
    ) -> StreamHeader:
        """The header of a stream of ``codebooks`` of a model, its codes packed as they are.

        There is a layer for each bandwidth of the model up to ``codebooks``. Raises ConfigError.
        """
        if not 1 <= codebooks <= config.num_quantizers:
            raise ConfigError(f"{codebooks} codebooks; the model has 1 to {config.num_quantizers}")
        if start not in STARTS:
            raise ConfigError(f"start={start!r}; accepted: {', '.join(STARTS)}")
        steps = {config.codebooks_for(bandwidth) for bandwidth in config.target_bandwidths}
        ends = [*sorted(step for step in steps if step < codebooks), codebooks]
        layers = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
        try:
            return cls(
                config.sampling_rate,
                config.audio_channels,
                config.hop_length,
                config.codebook_size,
                layers,
                segment=config.chunk_length or 0,
                stride=config.chunk_stride or 0,
                scaled=config.normalize,
                start=start,
                codes_sha256=codes_sha256,
            )
        except PacketError as error:
            raise ConfigError(f"this model cannot have an .encodec stream: {error}") from None

    def to_bytes(self) -> bytes:
        """The packet."""
        fixed = _HEAD.pack(
            HEAD_MAGIC,
            VERSION,
            self.channels,
            STARTS.index(self.start),
            self.coding,
            self.sampling_rate,
            self.hop,
            self.segment,
            self.stride,
            self.pre_skip,
            self.codebook_size,
            _SCALED * self.scaled,
            len(self.layers),
            self.codes_sha256,
            self.coder_sha256,
        )
        return fixed + struct.pack(f"<{len(self.layers)}H", *self.layers)

    @classmethod
    def parse(cls, data: bytes) -> StreamHeader:
        """The header in ``data``. Bytes beyond those of version 1 are ignored.

        Raises PacketError for a wrong magic or major version, and for impossible values.
        """
        if not data.startswith(HEAD_MAGIC):
            raise PacketError("not an identification header of an .encodec stream")
        if len(data) > len(HEAD_MAGIC) and data[len(HEAD_MAGIC)] >> 4:
            version = data[len(HEAD_MAGIC)]
            raise PacketError(f".encodec version {version}; this program reads versions 1 to 15")
        if len(data) < _HEAD.size:
            raise PacketError("the identification header ends early")
        (
            _,
            version,
            channels,
            start,
            coding,
            rate,
            hop,
            segment,
            stride,
            skip,
            size,
            flags,
            *rest,
        ) = _HEAD.unpack_from(data)
        count, weights, coder = rest
        end = _HEAD.size + 2 * count
        if version == 0 or len(data) < end or flags & ~_SCALED:
            raise PacketError("the identification header has an unknown version, length or flag")
        if start >= len(STARTS) or coding not in list(Coding):
            raise PacketError(f"start policy {start} and coding {coding}; accepted: 0 to 2")
        layers = struct.unpack_from(f"<{count}H", data, _HEAD.size)
        return cls(
            rate,
            channels,
            hop,
            size,
            layers,
            segment=segment,
            stride=stride,
            scaled=bool(flags & _SCALED),
            start=STARTS[start],
            pre_skip=skip,
            coding=Coding(coding),
            codes_sha256=weights,
            coder_sha256=coder,
        )


@dataclass(frozen=True)
class Comments:
    """The comment header: who wrote the stream, and fields such as TITLE, as in Opus and Vorbis."""

    vendor: str
    fields: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """The first field of that name, whose case does not matter."""
        return next((value for key, value in self.fields if key.upper() == name.upper()), None)

    def to_bytes(self) -> bytes:
        """The packet. Raises InputError for a name that Vorbis comments do not allow."""
        for name, _ in self.fields:
            if not _is_field_name(name):
                raise InputError(f"{name!r} is not a valid comment name; use ASCII without '='")
        entries = [f"{name}={value}" for name, value in self.fields]
        texts = [text.encode() for text in (self.vendor, *entries)]
        lengths = [struct.pack("<I", len(text)) + text for text in texts]
        return TAGS_MAGIC + lengths[0] + struct.pack("<I", len(entries)) + b"".join(lengths[1:])

    @classmethod
    def parse(cls, data: bytes) -> Comments:
        """The header in ``data``. Raises PacketError.

        Bytes that are not UTF-8 are replaced, and fields with an invalid name are left out.
        """
        if not data.startswith(TAGS_MAGIC):
            raise PacketError("the comment header is missing")
        place = len(TAGS_MAGIC)

        def number() -> int:
            nonlocal place
            if place + 4 > len(data):
                raise PacketError("the comment header ends early")
            place += 4
            return int.from_bytes(data[place - 4 : place], "little")

        def text() -> str:
            nonlocal place
            size = number()
            if place + size > len(data):
                raise PacketError("the comment header ends early")
            place += size
            return data[place - size : place].decode(errors="replace")

        vendor = text()
        entries = [text().partition("=") for _ in range(number())]
        fields = ((name, value) for name, _, value in entries if _is_field_name(name))
        return cls(vendor, tuple(fields))


def _is_field_name(name: str) -> bool:
    return bool(name) and all(" " <= letter <= "}" and letter != "=" for letter in name)


def codebooks_for_kbps(header: StreamHeader, bandwidth_kbps: float) -> Sequence[int]:
    """The first layers of a stream that fit ``bandwidth_kbps``. Raises ConfigError if none does."""
    for count in range(len(header.layers), 0, -1):
        if header.kbps(sum(header.layers[:count])) <= bandwidth_kbps + 1e-9:
            return header.layers[:count]
    raise ConfigError(
        f"bandwidth {bandwidth_kbps:g} kbps; the stream's first layer has "
        f"{header.kbps(header.layers[0]):g} kbps"
    )
