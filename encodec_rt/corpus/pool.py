"""Local processes: each gets the codec once, and then one unit after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from encodec_rt.corpus.units import Unit
from encodec_rt.errors import CodecError, StateError

R = TypeVar("R")
Work = Callable[[Unit], R]


def run_units(
    make: Callable[..., Work[R]], arguments: tuple[Any, ...], units: Iterable[Unit], jobs: int
) -> Iterator[R]:
    """The results of ``make(*arguments)`` for each unit, in any order, from ``jobs`` processes.

    No more units are taken than are being worked on. ``arguments`` are pickled once per process. A
    single job runs in this process. Raises what the work raises, and StateError if a process died.
    """
    if jobs == 1:
        with one_thread():
            work = make(*arguments)
            yield from map(work, units)
        return
    waiting = iter(units)
    with _Workers(make, arguments) as workers:
        while True:
            while len(workers) < jobs and (unit := next(waiting, None)) is not None:
                workers.start(unit)
            if not workers.busy:
                return
            for worker, result in workers.results():
                unit = next(waiting, None)
                if unit is None:
                    workers.dismiss(worker)
                else:
                    worker.give(unit)
                yield result


def default_jobs() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Worker(Generic[R]):
    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.unit: Unit | None = None

    def give(self, unit: Unit) -> None:
        self.unit = unit
        # A process that has already died is noticed when its result is awaited.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(unit.to_line())

    def result(self) -> R:
        try:
            good, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            name = self.unit.name if self.unit else "a unit"
            raise StateError(
                f"a worker died ({_death(self.process.exitcode)}) while it worked on {name}; run "
                "the same command again to resume, with more memory or fewer --jobs"
            ) from None
        if not good:
            raise value
        result: R = value
        return result


class _Workers(Generic[R]):
    """Worker processes; leaving the block ends them, even in the middle of a unit."""

    def __init__(self, make: Callable[..., Work[R]], arguments: tuple[Any, ...]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._make, self._arguments = make, arguments
        self._workers: list[_Worker[R]] = []

    def __enter__(self) -> _Workers[R]:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def busy(self) -> bool:
        return bool(self._workers)

    def start(self, unit: Unit) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._make, self._arguments), daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        self._workers[-1].give(unit)

    def results(self) -> Iterator[tuple[_Worker[R], R]]:
        """The next results, at least one."""
        ready = wait([worker.connection for worker in self._workers])
        for worker in [each for each in self._workers if each.connection in ready]:
            yield worker, worker.result()

    def dismiss(self, worker: _Worker[R]) -> None:
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)


def _serve(
    connection: Connection, make: Callable[..., Work[R]], arguments: tuple[Any, ...]
) -> None:
    """In each process: work until there is nothing more to do, or the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work: Work[R] | None = None
    while True:
        try:
            unit = Unit.from_line(connection.recv())
        except (EOFError, ConnectionResetError):
            return
        try:
            with one_thread():
                work = work or make(*arguments)
                result = True, work(unit)
        except (CodecError, OSError) as error:
            result = False, error  # type: ignore[assignment]
        try:
            connection.send(result)
        except (BrokenPipeError, ConnectionResetError):
            return


def _end_with_parent() -> None:
    """If the parent was killed, nobody reads the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread in the block: the processes share the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
