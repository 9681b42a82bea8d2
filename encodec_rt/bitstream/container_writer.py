"""Writing an ``.encodec`` stream without knowing its length and without seeking."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

from encodec_rt.bitstream.coding import CodeCoder, Coding, split_layers
from encodec_rt.bitstream.container import Comments, StreamHeader
from encodec_rt.bitstream.container_packet import DataPacket
from encodec_rt.bitstream.ogg import ByteSink, PageWriter
from encodec_rt.bitstream.payloads import PacketEncoder
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
        """Write both headers immediately, each on its own page, as in RFC 7845."""
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
        """Append ``packet``. It must have been made for its position, see ``starts_page``."""
        self.release()
        # A lost page should not affect what could be decoded without it.
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
        """Write the waiting packet, which is then not the last one."""
        if self._waiting is None:
            return
        self.position += self.header.duration(self._waiting.frames)
        self._pages.add(self._waiting.to_bytes(), self.position)
        self._waiting = None
        if self._on_page == 0:
            self._pages.flush()


class ContainerWriter:
    """Writes codes as they come, in any number of frames, to a stream in ``file``."""

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
        """Start a stream with ``header``, whose coding must be that of ``coder``."""
        self.header = replace(header, coding=coder.coding, coder_sha256=coder.sha256)
        self._coder = coder
        comments = Comments(f"encodec_rt {__version__}", tuple(fields))
        self._packets = PacketWriter(file, self.header, comments, page_s=page_s, serial=serial)
        self._packet: PacketEncoder | None = None
        self._restart = True
        self._in_packet, self._codebooks = 0, header.codebooks
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
            raise InputError(f"codes of shape {codes.shape}; pass [frames, codebooks]")
        list(split_layers(codes, header.layers))
        if codes.size and int(codes.max()) >= header.codebook_size:
            raise InputError(f"a code of {codes.max()}; pass codes in [0, {header.codebook_size})")
        if (scale is not None) != header.scaled:
            needed = "one scale per segment" if header.scaled else "no scale"
            raise InputError(f"scale={scale}; this stream has {needed}")
        self.frames += len(codes)
        if header.segment:
            if not 1 <= len(codes) <= header.max_frames:
                raise InputError(f"a segment of {len(codes)} frames; pass 1 to {header.max_frames}")
            self._push(codes)
            self._end_packet(scale)
            return
        if codes.shape[1] != self._codebooks:
            self._end_packet()
            self._codebooks = codes.shape[1]
        while len(codes):
            if self._in_packet == header.max_frames:
                self._end_packet()
                self._packets.release()
            room = header.max_frames - self._in_packet
            self._push(codes[:room])
            codes = codes[room:]

    def finish(self, samples: int) -> int:
        """End the stream of ``samples`` per channel, those to be skipped included -> its bytes.

        Raises StateError if the number of codes does not match ``samples``.
        """
        wanted = self.frames if self.header.segment else -(-samples // self.header.hop)
        if wanted != self.frames:
            raise StateError(f"{self.frames} frames for {samples} samples; {wanted} are needed")
        self._end_packet()
        self._packets.finish(samples)
        return self._packets.bytes_written

    def _push(self, codes: Codes) -> None:
        """Code frames immediately, so that each frame of a live stream takes the same work."""
        if self._packet is None:
            self._restart = self._packets.starts_page or not self._coder.needs_history
            self._packet = self._coder.packet(self.header.layers, restart=self._restart)
        self._packet.push(codes.copy())
        self._in_packet += len(codes)

    def _end_packet(self, scale: float | None = None) -> None:
        """Pass on the packet; the last one stays open, since the stream may end within it."""
        if self._packet is None:
            return
        payloads = tuple(self._packet.finish())
        self._packets.write(DataPacket(self._in_packet, payloads, self._restart, scale))
        self._packet, self._in_packet = None, 0
