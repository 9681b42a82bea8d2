"""Reading ``.encodec`` streams: packets with their places in time, gaps, and links of a chain.

A file may hold several streams one after the other (links) and others beside them (skipped).
Nothing here needs a model, a coder or a length; memory is bounded whatever the bytes claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from encodec_rt.bitstream.coding import CodeCoder
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_packet import DataPacket
from encodec_rt.bitstream.container_pages import LinkReader
from encodec_rt.bitstream.ogg import NO_GRANULE, Page
from encodec_rt.errors import PacketError
from encodec_rt.types import Codes

MAX_POSITION = 2**62


@dataclass(frozen=True, slots=True)
class Located:
    """A packet for the samples from ``start`` to ``end``; ``last`` ends its stream."""

    packet: DataPacket
    start: int
    end: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Lost samples from ``start`` to ``end``, and why; none if their number is unknown."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class CodeBlock:
    """Codes uint16 [frames, codebooks] for the samples from ``start`` to ``end``."""

    codes: Codes
    scale: float | None
    start: int
    end: int


class PacketReader(LinkReader):
    """The packets of the streams in a file, link by link.

    Opening reads the headers of the first link. With ``salvage`` damage comes as Gap and in
    ``problems``; without, it raises PacketError. A stream that simply stops at the end of a page,
    as a killed writer leaves it, is not damaged: ``ended`` stays False.
    """

    def __iter__(self) -> Iterator[Located | Gap]:
        """The rest of the current link."""
        for page in self._data_pages():
            try:
                yield from self._located(page)
            except PacketError as error:
                if not self.salvage:
                    raise PacketError(f"{error}, after {self._seconds()}") from None
                self._report(f"{error}, after {self._seconds()}")
                self._partial, self._damaged = None, True
            if page.last:
                self.ended = True
        if self._partial and not self.ended:
            self._problem("the stream ends within a packet")

    def _located(self, page: Page) -> Iterator[Located | Gap]:
        """The packets that end on ``page``, with their positions in time from its granule."""
        self._check_order(page)
        if not page.intact:
            what = "the file ends within a page" if page.cut else "a page has a wrong checksum"
            self._problem(what)
        packets: list[DataPacket | None] = []
        for index, (data, complete) in enumerate(page.pieces()):
            if index == 0 and self._partial is None and page.continued and self._damaged:
                packets += [None] * complete  # Its beginning was lost, and reported.
                continue
            whole = self._joined(data, complete)
            # An empty packet ends a stream whose last codes were written before the end was known.
            if whole or (whole is not None and not page.last):
                packets.append(self._parsed(whole))
        yield from self._placed(page, packets)
        self._first = False

    def _parsed(self, data: bytes) -> DataPacket | None:
        try:
            packet = DataPacket.parse(data, self.header, salvage=self.salvage)
        except PacketError as error:
            self._problem(str(error))
            return None
        if packet.missing:
            self._report(f"{packet.missing} of a packet's layers damaged, at {self._seconds()}")
        return packet

    def _placed(self, page: Page, packets: list[DataPacket | None]) -> Iterator[Located | Gap]:
        durations = [self.header.duration(packet.frames) if packet else 0 for packet in packets]
        known, lost = sum(durations), packets.count(None)
        end = self._page_end(page, packets, known, lost)
        start = self.position
        if self._first and not (page.last or lost or self._damaged):
            start = self.position = max(0, end - known)
        missing = max(0, end - known - start)
        if page.last and not lost and packets and missing <= self._beyond(packets[-1]):
            missing = 0
        if lost and page.last and not self.header.segment:
            # The end cuts the last frame, not one that was lost.
            missing = -(-missing // self.header.hop) * self.header.hop
        # Even if nothing is missing, what was decoded before may not be what was coded.
        if (missing or self._damaged) and not lost:
            yield self._gap(missing, "lost pages")
        for index, (packet, duration) in enumerate(zip(packets, durations, strict=True)):
            if packet is None:
                yield self._gap(missing, "a damaged packet")
                missing = 0
                continue
            begin = self.position
            self.position += duration
            last = page.last and index == len(packets) - 1
            if last:
                self.position = max(begin, min(end, begin + max(duration, self.header.segment)))
            yield Located(packet, begin, self.position, last)
        self._damaged = False

    def _beyond(self, packet: DataPacket | None) -> int:
        """By how much the last segment reaches beyond what is final without it."""
        return self.header.segment - self.header.stride if packet else 0

    def _page_end(
        self, page: Page, packets: Sequence[DataPacket | None], known: int, lost: int
    ) -> int:
        """Where the packets of ``page`` end, as its granule position says, if that can be."""
        ends = self.position + known
        if page.cut:
            return ends
        if not packets and not page.last:
            if page.granule != NO_GRANULE:
                self._problem("a page on which no packet ends has a granule position")
            return ends
        granule = page.granule
        if not 0 <= granule <= MAX_POSITION:
            self._problem(f"granule position {granule}, which no stream reaches")
            return ends
        final, low, high = packets[-1] if packets else None, ends, ends
        if page.last and final is not None:
            low = ends - self.header.duration(final.frames) + 1
            high = ends + self._beyond(final)
        if low <= granule <= high:
            return granule
        ahead = granule > high and page.intact
        if lost and not page.intact:
            # Either the packets or the position were hit: the position is trusted if it is
            # possible.
            most = ends + lost * self.header.duration(self.header.max_frames)
            return granule if ends < granule <= most else most
        if ahead and ((self._first and not page.last) or self._damaged or lost):
            return granule
        what = "leaps ahead" if granule > high else "goes backwards"
        self._problem(f"the granule position {what}, to {granule} where {ends} was due")
        return granule if ahead else ends

    def _gap(self, samples: int, reason: str) -> Gap:
        begin = self.position
        self.position += samples
        return Gap(begin, self.position, reason)


def skip_to(located: Iterator[Located | Gap], sample: int) -> Iterator[Located | Gap]:
    """From the last packet at or before ``sample`` on where decoding may begin, and on.

    Earlier packets are skipped without decoding; only those since the latest restart are held.
    """
    held: list[Located | Gap] = []
    for item in located:
        if isinstance(item, Located) and item.packet.restart and item.start <= sample:
            held = []
        held.append(item)
        if item.end > sample:
            break
    yield from held
    yield from located


def read_codes(
    located: Iterable[Located | Gap], header: StreamHeader, coder: CodeCoder, *, salvage: bool
) -> Iterator[CodeBlock | Gap]:
    """The codes of packets. What was coded after lost codes is lost too, up to the next restart.

    Raises PacketError for bytes that are not codes; with ``salvage`` they become a gap.
    """
    depth = len(header.layers) if not coder.needs_history else 0
    for item in located:
        if isinstance(item, Gap):
            depth = 0 if coder.needs_history else depth
            yield item
            continue
        packet, decoded = item.packet, None
        if packet.restart:
            depth = len(header.layers)
        if coder.needs_history:
            packet = packet.keep(depth)
        if packet.layers:
            try:
                decoded = coder.decode(
                    packet.layers, header.layers, packet.frames, restart=packet.restart
                )
            except PacketError as error:
                if not salvage:
                    seconds = item.start / header.sampling_rate
                    raise PacketError(f"{error}, after {seconds:.2f} s") from None
                depth = 0 if coder.needs_history else depth
        if item.packet.missing:
            depth = min(depth, len(packet.layers)) if coder.needs_history else depth
        if decoded is None:
            yield Gap(item.start, item.end, "codes that cannot be decoded")
        else:
            yield CodeBlock(decoded, packet.scale, item.start, item.end)
