"""The pages of ``.encodec`` streams, link by link and in order, with the headers of each link."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from encodec_rt.bitstream.container import (
    HEAD_MAGIC,
    MAX_PACKET_BYTES,
    TAGS_MAGIC,
    Comments,
    StreamHeader,
)
from encodec_rt.bitstream.ogg import Page, PageReader
from encodec_rt.errors import PacketError


class LinkReader:
    """The links of a file: the headers of the present one, and its pages.

    Opening reads the headers of the first link. With ``salvage`` damage is noted in ``problems``;
    without, it raises PacketError.
    """

    def __init__(self, file: BinaryIO, *, salvage: bool = False) -> None:
        self.salvage = salvage
        self.problems: list[str] = []
        self.foreign_pages = 0
        self.ended = False
        self.serial = 0
        self.position = 0
        self._events = iter(PageReader(file, salvage=salvage))
        self._partial: bytearray | None = None
        self._next: Page | None = None
        self._again: Page | None = None
        self._damaged = False
        if not self.next_link():
            raise PacketError("not an .encodec file: there is no EnCodec stream in it")

    def next_link(self) -> bool:
        """Skip to the next stream, past the rest of this one; False if there is none."""
        page = self._next or self._find_head()
        self._next = None
        while page is not None:
            try:
                self._open(page)
            except PacketError as error:
                if not self.salvage:
                    raise
                self._report(f"a stream was passed over: {error}")
                page = self._find_head()
                continue
            return True
        return False

    def _open(self, page: Page) -> None:
        """Read both headers, the first of which is on ``page``."""
        pieces = page.pieces()
        if len(pieces) != 1 or not pieces[0][1]:
            raise PacketError("the identification header is not alone on its page")
        self.header = StreamHeader.parse(pieces[0][0])
        self.serial, self.ended, self.position = page.serial, page.last, 0
        self._sequence = page.sequence + 1
        self._partial = None
        self._first, self._damaged = True, False
        self.comments = Comments("")
        for follower in self._data_pages():
            if self.salvage and not (self._partial or follower.body.startswith(TAGS_MAGIC)):
                self._report("the comment header is missing")
                self._again = follower
                return
            self._check_order(follower)
            for data, complete in follower.pieces():
                whole = self._joined(data, complete)
                if whole is None:
                    continue
                self.comments = Comments.parse(whole)
                # Codes begin on a new page, so this one holds nothing else.
                if len(follower.pieces()) > 1 or not complete:
                    raise PacketError("the comment header does not end its page")
                self.ended = follower.last
                return
        if not self.salvage:
            raise PacketError("the stream ends within its headers")

    def _data_pages(self) -> Iterator[Page]:
        """Pages of the current link; stops where another link begins, keeping that page."""
        while (page := self._page()) is not None:
            own = page.serial == self.serial
            if page.first:
                begins = page.body.startswith(HEAD_MAGIC)
                if begins and (own or not self._first or self.ended):
                    self._next = page
                    return
                self.foreign_pages += 1
            elif not own:
                self.foreign_pages += 1
            elif self.ended:
                self._problem("pages follow after the end of the stream")
            else:
                yield page

    def _page(self) -> Page | None:
        if (page := self._again) is not None:
            self._again = None
            return page
        for event in self._events:
            if isinstance(event, Page):
                return event
            self._report(f"{event.reason}: {event.size} bytes at {event.offset} passed over")
            self._damaged = True
        return None

    def _find_head(self) -> Page | None:
        while (page := self._page()) is not None:
            if page.first and page.body.startswith(HEAD_MAGIC):
                return page
            self.foreign_pages += 1
        return None

    def _joined(self, data: bytes, complete: bool) -> bytes | None:
        """The packet that ``data`` ends, or None if it continues."""
        held = self._partial if self._partial is not None else bytearray()
        held += data
        if len(held) > MAX_PACKET_BYTES:
            self._partial = None
            raise PacketError(f"a packet of more than {MAX_PACKET_BYTES} bytes")
        self._partial = None if complete else held
        return bytes(held) if complete else None

    def _check_order(self, page: Page) -> None:
        wanted = self._sequence & 0xFFFFFFFF
        # Damage that leaves a page in place may have hit this number instead.
        self._sequence = (page.sequence if page.intact else wanted) + 1
        if page.sequence != wanted and page.intact:
            self._problem(f"page {page.sequence} follows where page {wanted} was due")
            self._partial, self._damaged = None, True
        if page.continued != (self._partial is not None) and not (self._damaged and page.continued):
            self._problem("a packet is not continued as it should be")
            # A damaged page may say so by mistake; checksums reveal what is not a packet.
            self._damaged |= page.intact
            self._partial = None

    def _seconds(self) -> str:
        return f"{self.position / self.header.sampling_rate:.2f} s"

    def _problem(self, text: str) -> None:
        """Damage: an error, or with ``salvage`` a report."""
        if not self.salvage:
            raise PacketError(f"{text}; decode with --salvage to get the intact parts")
        self._report(text)

    def _report(self, text: str) -> None:
        if len(self.problems) < 100:
            self.problems.append(text)
