"""Writing an ``.encodec`` stream: no length is needed in advance, and nothing is ever sought."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from encodec_rt.bitstream.coding import CodeCoder, Coding, split_layers
from encodec_rt.bitstream.container import Comments, StreamHeader
from encodec_rt.bitstream.container_packet import DataPacket
from encodec_rt.bitstream.ogg import ByteSink, PageWriter
from encodec_rt.errors import InputError, StateError
from encodec_rt.types import Codes
from encodec_rt.version import __version__

FILE_PAGE_S = 8.0
"""Audio on a page of a file: 28 bytes of Ogg each are then under 2 % at 1.5 kbps."""
LIVE_PAGE_S = 1.0
"""Audio on a page of a recording, which is all that a killed writer may lose."""


class PacketWriter:
    """Headers and finished packets to pages, each as long as ``page_s``; packets are held back.

    The last packet waits for the next one, because the page with the end of the stream says so.
    """

    def __init__(
        self,
        file: ByteSink,
        header: StreamHeader,
        comments: Comments,
        *,
        page_s: float = FILE_PAGE_S,
        serial: int | None = None,
    ) -> None:
        """Write both headers at once, each on its own page, as RFC 7845 has it."""
        self.header = header
        self.serial = zlib.crc32(header.to_bytes()) if serial is None else serial
        self.position = 0
        self._pages = PageWriter(file, self.serial)
        self._page_samples = max(1, round(page_s * header.sampling_rate))
        self._on_page = 0
        self._waiting: DataPacket | None = None
        self._pages.add(header.to_bytes(), 0)
        self._pages.flush()
        self._pages.add(comments.to_bytes(), 0)
        self._pages.flush()

    @property
    def bytes_written(self) -> int:
        """Bytes in the file so far."""
        return self._pages.bytes_written

    @property
    def starts_page(self) -> bool:
        """Whether the next packet begins a page, which is where a language model restarts."""
        return self._on_page == 0

    def write(self, packet: DataPacket) -> None:
        """Append ``packet``. It must have been made for its place, see ``starts_page``."""
        self.release()
        # A page that is lost should not take with it what could be decoded without it.
        if packet.restart and self.header.coding is Coding.LANGUAGE_MODEL:
            self._pages.flush()
            self._on_page = 0
        self._waiting = packet
        self._on_page += self.header.duration(packet.frames)
        if self._on_page >= self._page_samples:
            self._on_page = 0

    def finish(self, samples: int) -> None:
        """End the stream at position ``samples``, which lies within the last packet."""
        packet = self._waiting
        if packet is None:
            if samples != self.position:
                raise StateError(f"the stream ends at {self.position} samples, not at {samples}")
            self._pages.add(b"", samples)
        else:
            most = self.header.segment or self.header.duration(packet.frames)
            if not self.position < samples <= self.position + most:
                raise StateError(
                    f"the stream ends at {samples} samples; its last packet has those from "
                    f"{self.position} to {self.position + most}"
                )
            self._pages.add(packet.to_bytes(), samples)
        self._waiting = None
        self._pages.flush(last=True)

    def release(self) -> None:
        """Write the packet that waits, which is then not the one that the stream ends in."""
        if self._waiting is None:
            return
        self.position += self.header.duration(self._waiting.frames)
        self._pages.add(self._waiting.to_bytes(), self.position)
        self._waiting = None
        if self._on_page == 0:
            self._pages.flush()


class ContainerWriter:
    """Codes as they come, in any number of frames, to a stream in ``file``."""

    def __init__(
        self,
        file: ByteSink,
        header: StreamHeader,
        coder: CodeCoder,
        *,
        fields: Sequence[tuple[str, str]] = (),
        page_s: float = FILE_PAGE_S,
        serial: int | None = None,
    ) -> None:
        """Begin a stream of ``header``, whose coding is that of ``coder``."""
        self.header = replace(header, coding=coder.coding, coder_sha256=coder.sha256)
        self._coder = coder
        comments = Comments(f"encodec_rt {__version__}", tuple(fields))
        self._packets = PacketWriter(file, self.header, comments, page_s=page_s, serial=serial)
        self._waiting: Codes = np.empty((0, header.codebooks), np.uint16)
        self.frames = 0

    @property
    def bytes_written(self) -> int:
        """Bytes in the file so far."""
        return self._packets.bytes_written

    def write(self, codes: Codes, scale: float | None = None) -> None:
        """Append ``codes`` uint16 [frames, codebooks of one or more layers].

        A stream of segments takes one whole segment per call, with its scale if it has scales; any
        other takes frames in any number. Raises InputError.
        """
        header = self.header
        if codes.ndim != 2:
            raise InputError(f"codes of shape {codes.shape}; [frames, codebooks] is needed")
        list(split_layers(codes, header.layers))
        if codes.size and int(codes.max()) >= header.codebook_size:
            raise InputError(f"a code of {codes.max()}; they lie in [0, {header.codebook_size})")
        if (scale is not None) != header.scaled:
            needed = "one scale per segment" if header.scaled else "no scale"
            raise InputError(f"scale={scale}; this stream has {needed}")
        self.frames += len(codes)
        if header.segment:
            if not 1 <= len(codes) <= header.max_frames:
                raise InputError(f"a segment of {len(codes)} frames; 1 to {header.max_frames}")
            self._packet(codes, scale)
            return
        if codes.shape[1] != self._waiting.shape[1]:
            self._drain(keep=0)
            self._waiting = codes[:0]
        self._waiting = np.concatenate([self._waiting, codes])
        self._drain(keep=1)

    def finish(self, samples: int) -> int:
        """End the stream of ``samples`` per channel, those to be skipped included -> its bytes.

        Raises StateError if the codes are not those of so many samples.
        """
        wanted = self.frames if self.header.segment else -(-samples // self.header.hop)
        if wanted != self.frames:
            raise StateError(f"{self.frames} frames for {samples} samples; {wanted} are needed")
        self._drain(keep=0)
        self._packets.finish(samples)
        return self._packets.bytes_written

    def _drain(self, keep: int) -> None:
        """Make packets of the waiting frames; ``keep`` of them must remain unless all go."""
        most = self.header.max_frames
        while len(self._waiting) >= most + keep or (len(self._waiting) and not keep):
            self._packet(self._waiting[:most], None)
            self._waiting = self._waiting[most:]
            if len(self._waiting):
                self._packets.release()

    def _packet(self, codes: Codes, scale: float | None) -> None:
        restart = self._packets.starts_page or not self._coder.needs_history
        payloads = self._coder.encode(codes, self.header.layers, restart=restart)
        self._packets.write(DataPacket(len(codes), tuple(payloads), restart, scale))
