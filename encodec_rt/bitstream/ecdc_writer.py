"""Writing ``.ecdc`` files, in pieces: whole ones, and ones that grow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from io import RawIOBase
from typing import BinaryIO, Protocol

import numpy as np

from encodec_rt.arrays import is_count
from encodec_rt.bitstream.ecdc_header import MAX_SAMPLES, SCALE, EcdcHeader, segments
from encodec_rt.bitstream.packet import group_size, pack_codes
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError, StateError
from encodec_rt.types import Codes

_SPOOL_BYTES = 1 << 20


class CodeSegmentEncoder(Protocol):
    """A language model's coder of the codes of one segment."""

    def write(self, codes: Codes) -> None:
        """Append ``codes`` [frames, codebooks]."""

    def finish(self) -> bytes:
        """The bytes of all of them."""


class _CodePacker:
    """Packs the codes of a stream consecutively, as many at a time as fill whole bytes."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._rest: Codes = np.empty(0, np.uint16)

    @property
    def waiting(self) -> int:
        """Codes that are not in the bytes yet."""
        return len(self._rest)

    def push(self, codes: Codes) -> bytes:
        flat = np.concatenate([self._rest, codes.reshape(-1)])
        whole = len(flat) - len(flat) % group_size(self._bits)
        self._rest = flat[whole:]
        return pack_codes(flat[:whole], self._bits)

    def flush(self) -> bytes:
        rest, self._rest = self._rest, self._rest[:0]
        return pack_codes(rest, self._bits)


class EcdcWriter:
    """Takes the codes of one stream as they come, and writes the file once its length is known.

    Until then the codes are in an unnamed temporary file. Close it, or use it in ``with``.
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
        if not (is_count(codebooks) and codebooks <= config.num_quantizers):
            raise InputError(f"{codebooks!r} codebooks; the model has 1 to {config.num_quantizers}")
        self._config = config
        self._model = model
        self._codebooks = codebooks
        self._frames = 0
        self._packer = _CodePacker(config.codebook_nbits)
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
            raise InputError(f"codes of shape {codes.shape}; pass [frames, {self._codebooks}]")
        if (scale is not None) != self._config.normalize:
            needed = "one scale per segment" if self._config.normalize else "no scale"
            raise InputError(f"scale={scale}; this model has {needed}")
        self._frames += len(codes)
        if scale is not None:
            self._spool.write(SCALE.pack(scale))
        if self._new_coder is not None:
            self._coder = self._coder or self._new_coder()
            self._coder.write(codes)
            if not self._config.is_framewise:
                self._spool.write(self._coder.finish())
                self._coder = None
        elif self._config.is_framewise:
            self._spool.write(self._packer.push(codes))
        else:
            self._spool.write(pack_codes(codes, self._config.codebook_nbits))

    def finish(self, file: BinaryIO, samples: int) -> int:
        """Write header and codes to ``file`` and return their size in bytes.

        Raises StateError if the codes are not those of ``samples`` samples per channel.
        """
        if not isinstance(samples, (int, np.integer)):
            raise InputError(f"samples={samples!r}; pass the number of samples per channel")
        expected = sum(frames for _, frames in segments(self._config, samples))
        if expected != self._frames:
            raise StateError(f"{self._frames} frames for {samples} samples; {expected} are needed")
        if self._coder is not None:
            self._spool.write(self._coder.finish())
        self._spool.write(self._packer.flush())
        coded = self._new_coder is not None
        header = EcdcHeader(self._model, samples, self._codebooks, coded).to_bytes()
        size = self._spool.tell()
        self._spool.seek(0)
        file.write(header)
        shutil.copyfileobj(self._spool, file)
        file.flush()
        return len(header) + size


class GrowingEcdc:
    """Writes codes into a file that is complete after every write: its header is kept up to date.

    ``file`` must be seekable, and is not closed here. This does not work for models that stream in
    segments.
    """

    def __init__(
        self, file: BinaryIO | RawIOBase, config: EncodecConfig, model: str, codebooks: int
    ) -> None:
        self._file = file
        self._config = config
        self._model = model
        self._codebooks = codebooks
        self._frames = 0
        self._packer = _CodePacker(config.codebook_nbits)
        self._text_size = len(EcdcHeader(model, MAX_SAMPLES, codebooks).to_bytes())
        self._write_header(0)

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]."""
        self._put(self._packer.push(codes))
        self._frames += len(codes)
        unwritten = -(-self._packer.waiting // self._codebooks)
        self._write_header((self._frames - unwritten) * self._config.hop_length)

    def finish(self, samples: int | None = None) -> None:
        """End the stream after ``samples`` per channel, or after all its frames."""
        self._put(self._packer.flush())
        whole = self._frames * self._config.hop_length
        self._write_header(whole if samples is None else samples)

    def _write_header(self, samples: int) -> None:
        header = EcdcHeader(self._model, samples, self._codebooks)
        self._file.seek(0)
        self._put(header.to_bytes(text_size=self._text_size))
        self._file.seek(0, os.SEEK_END)

    def _put(self, data: bytes) -> None:
        """Write all of ``data``: an unbuffered file writes only a part if the disk is full."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
