"""Where sessions are kept for a restart: a folder with the last few states of each."""

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
"""States of one session: one of which the client knows, ``MAX_UNANSWERED`` of which it may not have
heard yet, and that of its end."""
MAX_UNANSWERED = KEPT - 2
EXPIRES_S = 600.0
_SUFFIX, _PART = ".session", ".part"


class SessionStore:
    """States by the token that resumes a session; the folder does not give the token away."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which only its owner can read; make it if it is not there."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def save(self, token: str, state: SessionState) -> None:
        """Keep ``state`` as the newest of its session. It is there whole or not at all.

        One of a session that was resumed elsewhere meanwhile, as on another machine, is not kept.
        """
        kept = self._files(token)
        turn, number = _numbers(kept[0]) if kept else (0, 0)
        if turn > state.progress.resumed:
            return
        name = f"{_digest(token)}-{state.progress.resumed:06d}-{number + 1:010d}"
        # Another machine may be at the same name.
        part = self._folder / f".{name}-{secrets.token_hex(4)}{_PART}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(state.to_bytes())
        part.replace(self._folder / (name + _SUFFIX))
        for old in kept[KEPT - 1 :]:
            old.unlink(missing_ok=True)

    def load(self, token: str) -> list[SessionState]:
        """The states of a session, the newest first; what cannot be read is passed over."""
        states = map(_read, self._files(token))
        return [state for state in states if state is not None]

    def find(self, token: str, request: StreamRequest) -> SessionState | None:
        """The furthest state from which who asks for ``request`` can go on.

        Those beyond it are dropped: they will be made once more, and may not displace this one.
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
        """Drop sessions that nobody came back for, and what a killed server left half written."""
        parts = self._folder.glob(f".*{_PART}")
        for path in (*self._folder.glob(f"*{_SUFFIX}"), *parts):
            try:
                # By the file system's clock, as another process may have written it.
                if time.time() - path.stat().st_mtime > EXPIRES_S:
                    path.unlink()
            except OSError:
                continue

    def _files(self, token: str) -> list[Path]:
        # Not by glob: it keeps a pattern for every token there ever was.
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
    """How often the session had been resumed, and the state's own number."""
    _, turn, number = path.name.removesuffix(_SUFFIX).split("-")
    return int(turn), int(number)
