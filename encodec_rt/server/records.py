"""The records that fronts and the engine's process exchange.

Records from our own processes are trusted no more than others: an unreadable one is a PacketError.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import PacketError
from encodec_rt.server.protocol import Kind
from encodec_rt.server.queues import ClipEnd, WaitingFrame
from encodec_rt.types import Codes

_HEAD = struct.Struct("<BQId")
HEAD_BYTES = _HEAD.size


class RecordKind(IntEnum):
    """What a record is."""

    # From a front.
    PCM = 1
    CODES = 2
    LOST_CODES = 3
    END_PCM = 4
    END_CODES = 5
    KEPT = 6
    ASK = 7
    FIGURES = 8
    READY = 9
    # To a front.
    MESSAGE = 16
    EVENT = 17
    LOST = 18
    CLOSE = 19
    CUT = 20
    ANSWER = 21
    BROKEN = 22


_KINDS = {int(each): each for each in RecordKind}


class RingRecord(NamedTuple):
    """A record about the session ``key``, or about none if that is 0."""

    kind: RecordKind
    key: int = 0
    frame: int = 0
    """Its number."""
    arrived_s: float = 0.0
    content: bytes = b""

    def pack(self) -> bytes:
        """As bytes."""
        return _HEAD.pack(self.kind, self.key, self.frame, self.arrived_s) + self.content

    @staticmethod
    def unpack(data: bytes) -> RingRecord:
        """What ``pack`` made. Raises PacketError."""
        if len(data) < HEAD_BYTES:
            raise PacketError(f"a record of {len(data)} bytes; {HEAD_BYTES} come first")
        number, key, frame, arrived_s = _HEAD.unpack_from(data)
        form = _KINDS.get(number)
        if form is None:
            raise PacketError(f"a record of the unknown kind {number}")
        return RingRecord(form, key, frame, arrived_s, data[HEAD_BYTES:])

    @property
    def fields(self) -> dict[str, Any]:
        """The content as a JSON object. Raises PacketError."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            raise PacketError(f"a record of kind {self.kind.name} that is not JSON") from None
        if not isinstance(found, dict):
            raise PacketError(f"a record of kind {self.kind.name} that is not a JSON object")
        return found


def with_fields(form: RecordKind, about: int = 0, /, **fields: object) -> bytes:
    """A record with a JSON object in it."""
    return RingRecord(
        form, about, content=json.dumps(fields, separators=(",", ":")).encode()
    ).pack()


def pack_item(key: int, kind: Kind, item: WaitingFrame | ClipEnd) -> bytes:
    """A frame, or the end of a clip, on its way to the engine."""
    if isinstance(item, ClipEnd):
        form = RecordKind.END_PCM if kind == Kind.PCM else RecordKind.END_CODES
        return RingRecord(form, key, item.index, content=item.rest.astype("<i2").tobytes()).pack()
    if item.content is None:
        return RingRecord(RecordKind.LOST_CODES, key, item.index, item.arrived_s).pack()
    form, order = (RecordKind.PCM, "<i2") if kind == Kind.PCM else (RecordKind.CODES, "<u2")
    content = item.content.astype(order, copy=False).tobytes()
    return RingRecord(form, key, item.index, item.arrived_s, content).pack()


def unpack_item(
    record: RingRecord, config: EncodecConfig, codebooks: int
) -> tuple[Kind, WaitingFrame | ClipEnd]:
    """Read what ``pack_item`` made, for ``codebooks`` codebooks. Raises PacketError."""
    form, index, channels = record.kind, record.frame, config.audio_channels
    if form == RecordKind.LOST_CODES:
        return Kind.CODES, WaitingFrame(index, None, record.arrived_s)
    if form == RecordKind.CODES:
        return Kind.CODES, WaitingFrame(index, _codes(record, config, codebooks), record.arrived_s)
    if form not in (RecordKind.PCM, RecordKind.END_PCM, RecordKind.END_CODES) or len(
        record.content
    ) % (2 * channels):
        raise PacketError(f"a record of kind {form.name} with {len(record.content)} bytes")
    samples = np.frombuffer(record.content, "<i2").reshape(channels, -1)
    whole = samples.shape[1] == config.hop_length
    if form == RecordKind.PCM and whole:
        return Kind.PCM, WaitingFrame(index, samples, record.arrived_s)
    if form == RecordKind.PCM or samples.shape[1] >= config.hop_length:
        raise PacketError(f"a record of kind {form.name} with {samples.shape[1]} samples")
    return Kind.PCM if form == RecordKind.END_PCM else Kind.CODES, ClipEnd(index, samples)


def _codes(record: RingRecord, config: EncodecConfig, codebooks: int) -> Codes:
    if len(record.content) % 2 or not 0 < len(record.content) <= 2 * codebooks:
        raise PacketError(f"a frame of codes of {len(record.content)} bytes")
    codes = np.frombuffer(record.content, "<u2")
    if codes.max() >= config.codebook_size:
        raise PacketError(f"the code {codes.max()}; a codebook has {config.codebook_size}")
    return codes.astype(np.uint16, copy=False)
