"""Tags at the start of an MP3 file (ID3v2.4, id3.org)."""

from __future__ import annotations

_FRAMES = {
    b"TIT2": "title",
    b"TPE1": "artist",
    b"TALB": "album",
    b"COMM": "comment",
    b"TDRC": "date",
    b"TCON": "genre",
    b"TCOP": "copyright",
    b"TRCK": "tracknumber",
}


def id3_tag(tags: dict[str, str]) -> bytes:
    """A tag with ``tags`` in UTF-8, or nothing if there are none."""
    frames = b""
    for name, key in _FRAMES.items():
        if text := tags.get(key, ""):
            # Encoding 3 is UTF-8; a comment has a language and a description before it.
            before = b"\x03und\0" if name == b"COMM" else b"\x03"
            body = before + text.encode("utf-8", "replace")
            frames += name + _syncsafe(len(body)) + b"\0\0" + body
    return b"ID3\x04\0\0" + _syncsafe(len(frames)) + frames if frames else b""


def _syncsafe(number: int) -> bytes:
    """28 bits in four bytes of which the highest bit is 0."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))
