"""The container ``.encodec``: its headers and packets as bytes (docs/format.md has the layout).

Needs numpy alone. ``container_writer`` and ``container_reader`` put them into Ogg pages and take
them out again; ``editing`` scales, cuts and joins streams as they are.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from encodec_rt.bitstream.coding import NO_HASH, Coding, Payload
from encodec_rt.bitstream.packet import packed_size
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, InputError, PacketError

HEAD_MAGIC = b"EnCdHead"
TAGS_MAGIC = b"EnCdTags"
VERSION = 1
STARTS = ("exact", "primed", "zero")
PRE_ROLL_S = 1.0
"""Audio decoded and thrown away after a seek, while the decoder's state forgets where it began."""

MAX_PACKET_BYTES = 1 << 20
MAX_CODES_PER_PACKET = 1 << 20
MAX_LAYERS = 128

_HEAD = struct.Struct("<8sBBBBIIIIIIBB32s32s")
_SCALE = struct.Struct("<f")
_SCALED = 1
_RESTART = 1
_MAX_U32 = 2**32 - 1


@dataclass(frozen=True)
class StreamHeader:
    """The identification header: everything that reading, cutting and scaling need to know.

    ``layers`` are the codebooks that each layer adds. ``segment`` and ``stride`` are 0 for a model
    that streams frame by frame. ``pre_skip`` samples are decoded first and thrown away.
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
    weights_sha256: bytes = NO_HASH
    coder_sha256: bytes = NO_HASH

    def __post_init__(self) -> None:
        """Raise PacketError, in one sentence, for a stream that cannot be."""
        numbers = (self.sampling_rate, self.hop, self.segment, self.stride, self.pre_skip)
        if min(numbers) < 0 or max(numbers) > _MAX_U32 or not self.sampling_rate or not self.hop:
            raise PacketError(
                f"a stream of {self.sampling_rate} Hz with {self.hop} samples per frame"
            )
        if self.channels not in (1, 2):
            raise PacketError(f"a stream of {self.channels} channels; EnCodec has 1 or 2")
        if not 2 <= self.codebook_size <= 1 << 16 or self.codebook_size & (self.codebook_size - 1):
            raise PacketError(f"codebooks of {self.codebook_size}; a power of two up to 65536")
        if not 1 <= len(self.layers) <= MAX_LAYERS or min(self.layers) < 1:
            raise PacketError("a stream needs from 1 to 128 layers with a codebook or more each")
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
        """The most frames that a packet has: those of a second, or of a segment."""
        return max(1, -(-(self.segment or self.sampling_rate) // self.hop))

    @property
    def pre_roll(self) -> int:
        """Samples to decode before a place that is sought."""
        if self.segment:
            return self.segment - self.stride
        return math.ceil(PRE_ROLL_S * self.sampling_rate / self.hop) * self.hop

    def kbps(self, codebooks: int) -> float:
        """The bit rate of that many codebooks before coding."""
        return 1e-3 * codebooks * self.bits * math.ceil(self.sampling_rate / self.hop)

    def duration(self, frames: int) -> int:
        """Samples that are final once a packet of so many frames is decoded, and not the last."""
        return self.stride or frames * self.hop

    @classmethod
    def for_model(
        cls, config: EncodecConfig, codebooks: int, *, start: str, weights_sha256: bytes
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
                weights_sha256=weights_sha256,
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
            self.weights_sha256,
            self.coder_sha256,
        )
        return fixed + struct.pack(f"<{len(self.layers)}H", *self.layers)

    @classmethod
    def parse(cls, data: bytes) -> StreamHeader:
        """The header in ``data``. Bytes after what version 1 has are passed over.

        Raises PacketError for another magic or major version, and for impossible values.
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
            raise PacketError("the identification header has a version, length or flag unknown")
        if start >= len(STARTS) or coding not in list(Coding):
            raise PacketError(f"start policy {start} and coding {coding}; up to 2 are known")
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
            weights_sha256=weights,
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
                raise InputError(f"{name!r} is not the name of a comment: ASCII without '='")
        entries = [f"{name}={value}" for name, value in self.fields]
        texts = [text.encode() for text in (self.vendor, *entries)]
        lengths = [struct.pack("<I", len(text)) + text for text in texts]
        return TAGS_MAGIC + lengths[0] + struct.pack("<I", len(entries)) + b"".join(lengths[1:])

    @classmethod
    def parse(cls, data: bytes) -> Comments:
        """The header in ``data``. Raises PacketError.

        Bytes that are not UTF-8 are replaced, and fields whose name is none are left out.
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


@dataclass(frozen=True)
class DataPacket:
    """The codes of up to a second, or of one segment, in layers that stand for themselves.

    ``restart`` says that a language model begins anew here. ``missing`` counts the layers that
    were there but damaged, the first of which and all above were left out.
    """

    frames: int
    layers: tuple[Payload, ...]
    restart: bool = True
    scale: float | None = None
    missing: int = field(default=0, compare=False)

    def to_bytes(self) -> bytes:
        """The packet. The last layer ends it, so that only the others say how long they are."""
        first = _RESTART * self.restart | (len(self.layers) - 1) << 1
        parts = [bytes([first]) + self._head()[1:]]
        for index, layer in enumerate(self.layers):
            if index < len(self.layers) - 1:
                parts.append(varint(len(layer.data)))
            parts.append(_checksum(self._head(), index, layer.data).to_bytes(2, "little"))
            parts.append(layer.data)
        return b"".join(parts)

    def keep(self, layers: int) -> DataPacket:
        """The packet with its first ``layers`` only."""
        return replace(self, layers=self.layers[:layers])

    def _head(self) -> bytes:
        """The packet's bytes before its layers, but for their number: checked with each layer."""
        scale = b"" if self.scale is None else _SCALE.pack(self.scale)
        return bytes([_RESTART * self.restart]) + varint(self.frames) + scale

    @classmethod
    def parse(cls, data: bytes, header: StreamHeader, *, salvage: bool = False) -> DataPacket:
        """The packet in ``data`` of a stream with ``header``.

        Raises PacketError for anything that no writer makes; with ``salvage`` a layer that is
        damaged ends the packet and counts as missing, unless it is the first.
        """
        if not data:
            raise PacketError("an empty packet")
        count = (data[0] >> 1) + 1
        if count > len(header.layers):
            raise PacketError(f"{count} layers in a packet; the stream has {len(header.layers)}")
        frames, place = _read_varint(data, 1)
        if not 1 <= frames <= header.max_frames:
            raise PacketError(f"{frames} frames in a packet; from 1 to {header.max_frames}")
        scale = None
        if header.scaled:
            if len(data) < place + _SCALE.size:
                raise PacketError("a packet that ends within its scale")
            scale = float(_SCALE.unpack_from(data, place)[0])
            place += _SCALE.size
            if not (math.isfinite(scale) and scale > 0):
                raise PacketError(f"a segment's scale is {scale}; it must be a positive number")
        head, layers = bytes([data[0] & _RESTART]) + data[1:place], list[Payload]()
        for index, books in enumerate(header.layers[:count]):
            try:
                size, place = _read_varint(data, place) if index < count - 1 else (None, place)
                payload = _checked(data, place, size, head, index)
                layers.append(_payload(payload, packed_size(frames * books, header.bits)))
            except PacketError:
                if not (salvage and layers):
                    raise
                break
            place += 2 + len(payload)
        return cls(frames, tuple(layers), bool(data[0] & _RESTART), scale, count - len(layers))


def varint(value: int) -> bytes:
    """``value`` in groups of 7 bits, the lowest first; bit 7 says that another one follows."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of at most 4 groups, in its shortest form, and the place after it."""
    value = 0
    for shift in range(0, 28, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if shift and not byte:
                break
            return value, place
    raise PacketError("a damaged number in a packet")


def _checked(data: bytes, place: int, size: int | None, head: bytes, index: int) -> bytes:
    """The payload of layer ``index``, whose checksum is at ``place``; None: all that is left."""
    end = len(data) if size is None else place + 2 + size
    if not place + 2 <= end <= len(data):
        raise PacketError(f"layer {index + 1} of a packet ends early")
    payload = data[place + 2 : end]
    if _checksum(head, index, payload) != int.from_bytes(data[place : place + 2], "little"):
        raise PacketError(f"layer {index + 1} of a packet has a wrong checksum")
    return payload


def _payload(data: bytes, packed: int) -> Payload:
    """Bytes as many as packed codes have are packed codes: nobody codes what gains nothing."""
    if len(data) > packed:
        raise PacketError(f"a layer of {len(data)} bytes, whose codes take {packed} as they are")
    return Payload(len(data) == packed, data)


def _checksum(head: bytes, index: int, payload: bytes) -> int:
    """CRC-16/IBM-3740 of what a layer means: the packet's head, its own number, and its bytes."""
    return binascii.crc_hqx(head + bytes([index]) + payload, 0xFFFF)


def codebooks_for_kbps(header: StreamHeader, bandwidth_kbps: float) -> Sequence[int]:
    """The first layers of a stream that ``bandwidth_kbps`` bears. Raises ConfigError for none."""
    for count in range(len(header.layers), 0, -1):
        if header.kbps(sum(header.layers[:count])) <= bandwidth_kbps + 1e-9:
            return header.layers[:count]
    raise ConfigError(
        f"bandwidth {bandwidth_kbps:g} kbps; the stream's first layer has "
        f"{header.kbps(header.layers[0]):g} kbps"
    )
