"""Sessions saved for a restart: a folder with the last few states of each."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path

from encodec_rt.errors import PacketError
from encodec_rt.server.protocol import StreamRequest
from encodec_rt.server.session_state import SessionState

KEPT = 4
"""States kept of one session: one that the client has confirmed, ``MAX_UNANSWERED`` that it may not
have, and the state at its end."""
MAX_UNANSWERED = KEPT - 2
EXPIRES_S = 600.0
_SUFFIX, _PART = ".session", ".part"


class SessionStore:
    """States by the token that resumes a session; the folder does not reveal the token."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, readable only by its owner; it is created if missing."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def save(self, token: str, state: SessionState) -> None:
        """Save ``state`` as the newest of its session. It appears only when complete.

        It is not saved if the session has been resumed elsewhere meanwhile.
        """
        kept = self._files(token)
        turn, number = _numbers(kept[0]) if kept else (0, 0)
        if turn > state.progress.resumed:
            return
        name = f"{_digest(token)}-{state.progress.resumed:06d}-{number + 1:010d}"
        # Another machine may be using the same name.
        part = self._folder / f".{name}-{secrets.token_hex(4)}{_PART}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(state.to_bytes())
        part.replace(self._folder / (name + _SUFFIX))
        for old in kept[KEPT - 1 :]:
            old.unlink(missing_ok=True)

    def load(self, token: str) -> list[SessionState]:
        """The states of a session, newest first; unreadable ones are skipped."""
        states = map(_read, self._files(token))
        return [state for state in states if state is not None]

    def find(self, token: str, request: StreamRequest) -> SessionState | None:
        """The furthest state from which the client of ``request`` can continue.

        Later ones are dropped: they will be made again, and must not displace this one.
        """
        states = {path: state for path in self._files(token) if (state := _read(path))}
        fitting = [state for state in states.values() if state.is_for(request)]
        if not fitting:
            return None
        for path, state in states.items():
            if state not in fitting:
                path.unlink(missing_ok=True)
        return max(fitting, key=lambda state: (state.progress.encoded, state.progress.decoded))

    def forget(self, token: str) -> None:
        """Drop a session that has ended."""
        for path in self._files(token):
            path.unlink(missing_ok=True)

    def expire(self) -> None:
        """Drop sessions that nobody came back for, and incomplete files of a killed server."""
        parts = self._folder.glob(f".*{_PART}")
        for path in (*self._folder.glob(f"*{_SUFFIX}"), *parts):
            try:
                # By the file system's clock, since another process may have written it.
                if time.time() - path.stat().st_mtime > EXPIRES_S:
                    path.unlink()
            except OSError:
                continue

    def _files(self, token: str) -> list[Path]:
        # Not by glob: it caches a pattern for every token.
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]
        own = [name for name in names if name.startswith(_digest(token) + "-")]
        return [self._folder / name for name in sorted(own, reverse=True)]


def _read(path: Path) -> SessionState | None:
    try:
        return SessionState.from_bytes(path.read_bytes())
    except (OSError, PacketError):
        return None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:40]


def _numbers(path: Path) -> tuple[int, int]:
    """How often the session had been resumed, and the state's number."""
    _, turn, number = path.name.removesuffix(_SUFFIX).split("-")
    return int(turn), int(number)
