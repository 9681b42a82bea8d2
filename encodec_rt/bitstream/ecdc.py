"""`.ecdc` files, version 0, without a language model: docs/format.md has the byte layout.

Reading and writing go in pieces, so that memory does not grow with the length of a stream.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from encodec_rt.bitstream.packet import group_size, pack_codes, packed_size, unpack_codes
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError, PacketError, StateError
from encodec_rt.types import Codes

MAGIC = b"ECDC"
VERSION = 0
MAX_HEADER_BYTES = 4096
MAX_SAMPLES = 2**53

_PREFIX = struct.Struct("!4sBI")
_SCALE = struct.Struct("!f")
_BLOCK_FRAMES = 512
_READ_BYTES = 1 << 16
_SPOOL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EcdcHeader:
    """What stands in front of the codes: model, samples per channel, codebooks, coding."""

    model: str
    samples: int
    codebooks: int
    language_model: bool = False

    def to_bytes(self, *, text_size: int = 0) -> bytes:
        """The header as the original package writes it.

        Spaces make its JSON ``text_size`` bytes long, so that a header whose numbers grow can be
        written over.
        """
        fields = {
            "m": self.model,
            "al": self.samples,
            "nc": self.codebooks,
            "lm": self.language_model,
        }
        text = json.dumps(fields).encode().ljust(text_size)
        return _PREFIX.pack(MAGIC, VERSION, len(text)) + text


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of a stream: ``codes`` uint16 [frames, codebooks] that stand for ``samples``.

    For a model that streams in segments it is a whole one, else any number of frames.
    """

    codes: Codes
    scale: float | None
    samples: int


def segments(config: EncodecConfig, samples: int) -> Iterator[tuple[int, int]]:
    """(samples, frames) of each segment that a clip of ``samples`` is cut into.

    Frames are ceil(samples / hop), which is what the original's formula (compress.py,
    decompress_from_file) gives for its own models.
    """
    length, stride = config.chunk_length or samples, config.chunk_stride or samples
    for offset in range(0, samples, max(1, stride)):
        size = min(length, samples - offset)
        yield size, -(-size // config.hop_length)


class CodeSegmentEncoder(Protocol):
    """A language model's coder of the codes of one segment."""

    def write(self, codes: Codes) -> None:
        """Append ``codes`` [frames, codebooks]."""

    def finish(self) -> bytes:
        """The bytes of all of them."""


class CodeSegmentDecoder(Protocol):
    """A language model's decoder."""

    def segment(self, file: BinaryIO, frames: int, books: int) -> Iterator[Codes]:
        """The codes of the next segment in ``file``, in blocks; fewer where the file ends."""


class EcdcWriter:
    """Takes the codes of one stream as they come, and writes the file once its length is known.

    Until then the codes lie in a temporary file that has no name. Close it, or use it in ``with``.
    """

    def __init__(
        self,
        config: EncodecConfig,
        model: str,
        codebooks: int,
        *,
        coder: Callable[[], CodeSegmentEncoder] | None = None,
    ) -> None:
        """``coder`` gives a language model's coder for each segment; none packs the codes."""
        if not 1 <= codebooks <= config.num_quantizers:
            raise InputError(f"{codebooks} codebooks; the model has 1 to {config.num_quantizers}")
        self._config = config
        self._model = model
        self._codebooks = codebooks
        self._frames = 0
        self._rest: Codes = np.empty(0, np.uint16)
        self._new_coder = coder
        self._coder: CodeSegmentEncoder | None = None
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115, closed by close()

    def __enter__(self) -> EcdcWriter:
        """Self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what was collected."""
        self.close()

    def close(self) -> None:
        """Drop what was collected."""
        self._spool.close()

    def write(self, codes: Codes, scale: float | None = None) -> None:
        """Append ``codes`` uint16 [frames, codebooks].

        A model that streams in segments takes one whole segment per call, with its scale if it
        normalises; any other takes frames in any number.
        """
        if codes.ndim != 2 or codes.shape[1] != self._codebooks:
            raise InputError(f"codes of shape {codes.shape}; [frames, {self._codebooks}] is needed")
        if (scale is not None) != self._config.normalize:
            needed = "one scale per segment" if self._config.normalize else "no scale"
            raise InputError(f"scale={scale}; this model has {needed}")
        bits = self._config.codebook_nbits
        self._frames += len(codes)
        if scale is not None:
            self._spool.write(_SCALE.pack(scale))
        if self._new_coder is not None:
            self._coder = self._coder or self._new_coder()
            self._coder.write(codes)
            if not self._config.is_framewise:
                self._spool.write(self._coder.finish())
                self._coder = None
            return
        if not self._config.is_framewise:
            self._spool.write(pack_codes(codes, bits))
            return
        flat = np.concatenate([self._rest, codes.reshape(-1)])
        whole = len(flat) - len(flat) % group_size(bits)
        self._spool.write(pack_codes(flat[:whole], bits))
        self._rest = flat[whole:]

    def finish(self, file: BinaryIO, samples: int) -> int:
        """Write header and codes to ``file`` and return their size in bytes.

        Raises StateError if the codes are not those of ``samples`` samples per channel.
        """
        expected = sum(frames for _, frames in segments(self._config, samples))
        if expected != self._frames:
            raise StateError(f"{self._frames} frames for {samples} samples; {expected} are needed")
        if self._coder is not None:
            self._spool.write(self._coder.finish())
        self._spool.write(pack_codes(self._rest, self._config.codebook_nbits))
        self._rest = self._rest[:0]
        coded = self._new_coder is not None
        header = EcdcHeader(self._model, samples, self._codebooks, coded).to_bytes()
        size = self._spool.tell()
        self._spool.seek(0)
        file.write(header)
        shutil.copyfileobj(self._spool, file)
        file.flush()
        return len(header) + size


def read_header(file: BinaryIO) -> EcdcHeader:
    """The header at the start of ``file``, which is left at the first code.

    Raises PacketError for anything but the header of a version 0 file.
    """
    prefix = _read(file, _PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        raise PacketError("not an .ecdc file: it does not begin with 'ECDC'")
    if len(prefix) < _PREFIX.size:
        raise PacketError("the file ends within its header")
    _, version, size = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise PacketError(f".ecdc version {version}; this program reads version {VERSION}")
    if size > MAX_HEADER_BYTES:
        raise PacketError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are accepted")
    text = _read(file, size)
    if len(text) < size:
        raise PacketError("the file ends within its header")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PacketError(f"the header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PacketError("the header is no JSON object")
    return _checked(fields)


class EcdcReader:
    """Iterates over the blocks of a stream whose header was read already.

    A stream that ends early raises PacketError; with ``salvage`` it ends after its last whole
    frame and ``truncated`` is set.
    """

    def __init__(
        self,
        file: BinaryIO,
        header: EcdcHeader,
        config: EncodecConfig,
        *,
        salvage: bool = False,
        decoder: CodeSegmentDecoder | None = None,
    ) -> None:
        if header.language_model and decoder is None:
            raise PacketError(
                "this stream is coded with the original package's language model; name its .th "
                "file with --lm"
            )
        self._decoder = decoder if header.language_model else None
        if header.codebooks > config.num_quantizers:
            raise PacketError(
                f"nc={header.codebooks} codebooks; the model has {config.num_quantizers}"
            )
        self.header = header
        self.truncated = False
        self._file = file
        self._config = config
        self._salvage = salvage

    def __iter__(self) -> Iterator[Block]:
        """The blocks, in order."""
        for samples, frames in segments(self._config, self.header.samples):
            yield from self._segment(samples, frames)
            if self.truncated:
                return
        if not self._salvage and self._file.read(1):
            raise PacketError(
                f"more bytes follow after the {self.header.samples} samples of the header; "
                "the file is damaged, or something was appended to it"
            )

    def _segment(self, samples: int, frames: int) -> Iterator[Block]:
        scale = None
        if self._config.normalize:
            scale = self._scale()
            if self.truncated:
                return
        if self._decoder is not None:
            yield from self._coded(self._decoder, samples, frames, scale)
            return
        step = _BLOCK_FRAMES if self._config.is_framewise else frames
        bits = self._config.codebook_nbits
        books = self.header.codebooks
        for start in range(0, frames, step):
            count = min(step, frames - start)
            size = packed_size(count * books, bits)
            data = _read(self._file, size)
            if len(data) < size:
                self._cut()
                count = len(data) * 8 // (books * bits)
                data = data[: packed_size(count * books, bits)]
            held = min(samples - start * self._config.hop_length, count * self._config.hop_length)
            if count:
                yield Block(unpack_codes(data, bits, (count, books)), scale, held)
            if self.truncated:
                return

    def _coded(
        self, decoder: CodeSegmentDecoder, samples: int, frames: int, scale: float | None
    ) -> Iterator[Block]:
        """A segment that a language model coded: whole, unless the model streams by frames."""
        given, parts = 0, list[Codes]()
        for codes in decoder.segment(self._file, frames, self.header.codebooks):
            given += len(codes)
            if not self._config.is_framewise:
                parts.append(codes)
            elif len(codes):
                hop = self._config.hop_length
                yield Block(codes, scale, min(samples, given * hop) - (given - len(codes)) * hop)
        if parts and given:
            held = min(samples, given * self._config.hop_length)
            yield Block(np.concatenate(parts), scale, held)
        if given < frames:
            self._cut()

    def _scale(self) -> float | None:
        data = _read(self._file, _SCALE.size)
        if len(data) < _SCALE.size:
            self._cut()
            return None
        scale = float(_SCALE.unpack(data)[0])
        if not (math.isfinite(scale) and scale > 0):
            raise PacketError(f"a segment's scale is {scale}; it must be a positive number")
        return scale

    def _cut(self) -> None:
        self.truncated = True
        if not self._salvage:
            raise PacketError(
                f"the stream ends before the {self.header.samples} samples that its header "
                "announces; --salvage decodes what is there"
            )


def _checked(fields: dict[str, object]) -> EcdcHeader:
    model, samples = fields.get("m"), fields.get("al")
    codebooks, language_model = fields.get("nc"), fields.get("lm")
    if not isinstance(model, str) or not 1 <= len(model) <= 80 or not model.isprintable():
        raise PacketError("the header's model name 'm' is missing or is no name")
    if not isinstance(samples, int) or isinstance(samples, bool) or not 0 <= samples <= MAX_SAMPLES:
        raise PacketError("the header's length 'al' is missing or out of range")
    if not isinstance(codebooks, int) or isinstance(codebooks, bool) or codebooks < 1:
        raise PacketError("the header's number of codebooks 'nc' is missing or out of range")
    if not isinstance(language_model, bool):
        raise PacketError("the header's 'lm' is missing or neither true nor false")
    return EcdcHeader(model, samples, codebooks, language_model)


def _read(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or fewer if the file ends; pipes and sockets may give them in pieces.

    Nothing is set aside beforehand for a size that the file only claims to have.
    """
    pieces = []
    while size > 0:
        piece = file.read(min(size, _READ_BYTES))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
