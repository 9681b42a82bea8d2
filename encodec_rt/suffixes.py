"""The suffixes of files that count as audio in a folder."""

from __future__ import annotations

AUDIO_SUFFIXES = frozenset(
    (
        ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".mka",
        ".webm", ".aif", ".aiff", ".au", ".caf", ".w64", ".wma", ".g722", ".amr", ".ac3", ".mp2",
        ".rf64", ".bwf", ".snd", ".mkv", ".mov", ".3gp",
    )
)  # fmt: skip
"""In lower case. A file that is named explicitly may have any suffix."""
