"""What one session may ask of the server, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionLimits:
    """The limits of every session."""

    waiting_frames: int = 8
    """In each direction; the oldest are dropped and reported."""
    messages_per_s: float = 1000.0
    message_burst: int = 2000
    events_per_s: float = 10.0
    """Text messages, of which some are expensive."""
    event_burst: int = 30
    errors_per_s: float = 5.0
    error_burst: int = 50
    silent_s: float = 10.0
    slow_s: float = 2.0
    """How long the client may take to read one message."""
    session_s: float = 4 * 3600.0
    snapshot_s: float = 1.0
    drain_s: float = 30.0
    close_over_s: float = 3.0
    """Over how long the last sessions of a drain are closed, so that not all return at once."""
