"""The header of ``.ecdc`` files, version 0, and what follows from it (docs/format.md)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import PacketError

MAGIC = b"ECDC"
VERSION = 0
MAX_HEADER_BYTES = 4096
MAX_SAMPLES = 2**53

SCALE = struct.Struct("!f")
"""Before the codes of a segment, if the model normalises."""

_PREFIX = struct.Struct("!4sBI")
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EcdcHeader:
    """What precedes the codes: model, samples per channel, codebooks, coding."""

    model: str
    samples: int
    codebooks: int
    language_model: bool = False

    def to_bytes(self, *, text_size: int = 0) -> bytes:
        """The header as the original package writes it.

        Spaces pad its JSON to ``text_size`` bytes, so that a header whose numbers grow can be
        overwritten.
        """
        fields = {
            "m": self.model,
            "al": self.samples,
            "nc": self.codebooks,
            "lm": self.language_model,
        }
        text = json.dumps(fields).encode().ljust(text_size)
        return _PREFIX.pack(MAGIC, VERSION, len(text)) + text


def read_header(file: BinaryIO) -> EcdcHeader:
    """The header at the start of ``file``, which is left at the first code.

    Raises PacketError for anything but the header of a version 0 file.
    """
    prefix = read_up_to(file, _PREFIX.size)
    if not prefix:
        raise PacketError("the file is empty; a file of codes has at least a header")
    if prefix[: len(MAGIC)] != MAGIC:
        raise PacketError(
            "not a file of codes: it begins neither with 'ECDC', as .ecdc, nor with 'OggS', "
            "as .encodec"
        )
    if len(prefix) < _PREFIX.size:
        raise PacketError("the file ends within its header")
    _, version, size = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise PacketError(f".ecdc version {version}; this program reads version {VERSION}")
    if size > MAX_HEADER_BYTES:
        raise PacketError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are accepted")
    text = read_up_to(file, size)
    if len(text) < size:
        raise PacketError("the file ends within its header")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PacketError(f"the header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PacketError("the header is not a JSON object")
    return _checked(fields)


def _checked(fields: dict[str, object]) -> EcdcHeader:
    model, samples = fields.get("m"), fields.get("al")
    codebooks, language_model = fields.get("nc"), fields.get("lm")
    if not isinstance(model, str) or not 1 <= len(model) <= 80 or not model.isprintable():
        raise PacketError("the header's model name 'm' is missing or not a name")
    if not isinstance(samples, int) or isinstance(samples, bool) or not 0 <= samples <= MAX_SAMPLES:
        raise PacketError("the header's length 'al' is missing or out of range")
    if not isinstance(codebooks, int) or isinstance(codebooks, bool) or codebooks < 1:
        raise PacketError("the header's number of codebooks 'nc' is missing or out of range")
    if not isinstance(language_model, bool):
        raise PacketError("the header's 'lm' is missing or neither true nor false")
    return EcdcHeader(model, samples, codebooks, language_model)


def read_up_to(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or fewer if the file ends; pipes and sockets may give them in pieces.

    No memory is allocated in advance for a size that the file only claims to have.
    """
    pieces = []
    while size > 0:
        piece = file.read(min(size, _READ_BYTES))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def segments(config: EncodecConfig, samples: int) -> Iterator[tuple[int, int]]:
    """(samples, frames) of each segment that a clip of ``samples`` is cut into.

    Frames are ceil(samples / hop), which is what the original's formula (compress.py,
    decompress_from_file) gives for its own models.
    """
    length, stride = config.chunk_length or samples, config.chunk_stride or samples
    for offset in range(0, samples, max(1, stride)):
        size = min(length, samples - offset)
        yield size, -(-size // config.hop_length)
