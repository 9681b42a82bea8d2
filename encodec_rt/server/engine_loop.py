"""The thread that owns an engine: commands between passes, and a pass whenever input waits.

It has no fixed tick, which never catches up after a stall. Stepping whenever it is idle gathers
what arrived meanwhile into one larger batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from encodec_rt.errors import StateError
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.queues import Output
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.slot_stream import SlotStream
from encodec_rt.server.stepper import Stepper
from encodec_rt.streaming.engine import Engine

IDLE_S = 0.25
"""How long it sleeps if nobody wakes it."""

Result = TypeVar("Result")
Made = TypeVar("Made", bound=SlotStream)
Deliver = Callable[[list[Output]], None]
Save = Callable[[int, SessionState], None]


class EngineLoop:
    """Steps an engine's sessions on a thread of its own. All methods are for other threads."""

    def __init__(
        self, engine: Engine, deliver: Deliver, save: Save, metrics: Metrics, snapshot_s: float
    ) -> None:
        """``deliver`` gets the results of each pass, ``save`` a session's state every
        ``snapshot_s``.

        Both are called on this thread and must not take long.
        """
        self._engine, self._deliver, self._save, self._metrics = engine, deliver, save, metrics
        self._snapshot_s = snapshot_s
        self._commands: deque[Callable[[], list[Output]]] = deque()
        self._wake = threading.Event()
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="encodec-rt-edges")
        self._stepper = Stepper(engine, self._do_apart)
        self._streams: dict[int, SlotStream] = {}
        self._waiting: dict[Future[Any], None] = {}
        self._stopping = self._ended = False
        self._moved_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="encodec-rt-engine", daemon=True)

    def start(self) -> None:
        """Start. The engine belongs to this thread from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the pass in progress, and wait for that."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self._apart.shutdown(cancel_futures=True)

    def wake(self) -> None:
        """Say that something waits."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def idle_s(self) -> float:
        """How long ago the thread last moved; infinite if it has ended."""
        return time.monotonic() - self._moved_s if self._thread.is_alive() else float("inf")

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do ``work`` on the engine's thread between two passes."""
        done: Future[Result] = Future()

        def command() -> list[Output]:
            if not done.set_running_or_notify_cancel():
                return []
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001
                # The caller that waits for the result gets the error.
                done.set_exception(error)
            return []

        self._waiting[done] = None
        done.add_done_callback(lambda each: self._waiting.pop(each, None))
        self._post(command)
        if self._ended:
            self._give_up()
        return done

    def _give_up(self) -> None:
        """Do not let anyone wait for a thread that has ended."""
        self._ended = True
        for done in list(self._waiting):
            if done.set_running_or_notify_cancel():
                done.set_exception(StateError("the engine has stopped; connect to another server"))

    def add(self, make: Callable[[Engine], Made]) -> Future[Made]:
        """Make a session and step it from now on."""

        def add() -> Made:
            stream = make(self._engine)
            self._streams[stream.key] = stream
            return stream

        return self.call(add)

    def remove(self, key: int) -> Future[SessionState | None]:
        """Stop stepping a session; its state, or None if it is not kept or not ready."""

        def remove() -> SessionState | None:
            stream = self._streams.pop(key, None)
            if stream is None or not (stream.is_kept and stream.is_quiet):
                return None
            return SessionState.of(stream, self._engine)

        return self.call(remove)

    def _post(self, command: Callable[[], list[Output]]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _do_apart(self, work: Callable[[], Any], done: Callable[[Any], list[Output]]) -> None:
        future = self._apart.submit(work)
        future.add_done_callback(lambda each: self._post(lambda: done(each.result())))

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self._give_up()

    def _loop(self) -> None:
        torch.set_num_threads(1)
        saved_s = time.monotonic()
        idle = True
        while not self._stopping:
            if idle:
                self._wake.wait(IDLE_S)
            self._wake.clear()
            self._moved_s = now_s = time.monotonic()
            outputs: list[Output] = []
            while self._commands:
                outputs += self._commands.popleft()()
            stepped = self._stepper.step(self._streams.values(), now_s)
            idle = not stepped
            outputs += stepped
            if stepped:
                self._measure(stepped, now_s)
            if outputs:
                # Results of a session that is gone are of no use.
                self._deliver([each for each in outputs if each.key in self._streams])
            if now_s - saved_s >= self._snapshot_s:
                saved_s = now_s
                self._save_all()

    def _measure(self, outputs: list[Output], begun_s: float) -> None:
        now_s = time.monotonic()
        self._metrics.stepped(now_s - begun_s, self._stepper.batch_sizes)
        self._stepper.batch_sizes = []
        self._metrics.concealed(self._stepper.concealed)
        self._stepper.concealed = 0
        for each in outputs:
            if each.arrived_s is not None:
                self._metrics.made(now_s - each.arrived_s)

    def _save_all(self) -> None:
        with self._metrics.snapshots():
            for stream in self._streams.values():
                if stream.is_kept and stream.changed and stream.is_quiet:
                    stream.changed = False
                    self._save(stream.key, SessionState.of(stream, self._engine))
