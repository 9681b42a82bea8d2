"""A data packet of ``.encodec`` as bytes: the codes of up to a second in layers, each checked.

Needs numpy alone.
"""

from __future__ import annotations

import binascii
import math
import struct
from dataclasses import dataclass, field, replace

from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.packet import packed_size
from encodec_rt.bitstream.payloads import Payload
from encodec_rt.errors import PacketError

_SCALE = struct.Struct("<f")
_RESTART = 1


@dataclass(frozen=True)
class DataPacket:
    """The codes of up to a second, or of one segment, in independent layers.

    ``restart`` says that a language model's context restarts here. ``missing`` counts the layers
    left out because they, or one below them, were damaged.
    """

    frames: int
    layers: tuple[Payload, ...]
    restart: bool = True
    scale: float | None = None
    missing: int = field(default=0, compare=False)

    def to_bytes(self) -> bytes:
        """The packet. The last layer ends it, so only the others state their length."""
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

        Raises PacketError for anything that no writer makes; with ``salvage`` a damaged layer ends
        the packet and counts as missing, unless it is the first.
        """
        if not data:
            raise PacketError("an empty packet")
        count = (data[0] >> 1) + 1
        if count > len(header.layers):
            raise PacketError(f"{count} layers in a packet; the stream has {len(header.layers)}")
        frames, place = _read_varint(data, 1)
        if not 1 <= frames <= header.max_frames:
            raise PacketError(f"{frames} frames in a packet; accepted: 1 to {header.max_frames}")
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
    """A payload as long as packed codes is packed, since coding that saves nothing is not used."""
    if len(data) > packed:
        raise PacketError(f"a layer of {len(data)} bytes, although its codes take {packed} packed")
    return Payload(len(data) == packed, data)


def _checksum(head: bytes, index: int, payload: bytes) -> int:
    """CRC-16/IBM-3740 of a layer: the packet's head, the layer's index, and its bytes."""
    return binascii.crc_hqx(head + bytes([index]) + payload, 0xFFFF)
