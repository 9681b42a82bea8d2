"""One command for many files: what goes where, and several at once."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from encodec_rt.cli.console import PIPE, keeping_codecs, one_line, report, say
from encodec_rt.cli.file_options import about
from encodec_rt.cli.habits import VERBOSITY, Verbosity, hints_of
from encodec_rt.cli.interrupts import InterruptedWork, deaf_children, ended_by_parent
from encodec_rt.errors import CodecError, InputError

EXIT_FAILED = 2

JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", help="Files to work on at once.", min=1, max=1024)
]


@dataclass(frozen=True)
class Naming:
    """How a command names its outputs: ``clip.wav`` becomes ``clip`` with ``ending``.

    ``inputs`` are the suffixes that are taken from a folder. An existing second file counts as an
    output if its suffix is in ``outputs``, else as another input; with None it is always the
    output.
    """

    ending: str
    inputs: frozenset[str]
    outputs: frozenset[str] | None

    def is_output(self, path: str) -> bool:
        """Whether ``path``, the second of two, is where the first one goes."""
        from encodec_rt.atomic import is_stream

        if path == PIPE or is_stream(path) or self.outputs is None or not os.path.exists(path):
            return True
        return Path(path).suffix.lower() in self.outputs

    def default(self, source: Path) -> Path:
        """The output next to ``source``. Raises InputError if that is not the name of a file."""
        if not source.name:
            raise InputError(f"{str(source)!r} is not the name of a file; give one, or a folder")
        return source.with_name(source.stem + self.ending)


def several(naming: Naming) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of ``source`` and ``target``, NAME_file, as NAME of any number of paths."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command).parameters
        hints = hints_of(command)
        argument = typer.Argument(
            metavar="IN... [OUT]",
            help="Input files, folders, or '-'. Then an output file or folder; without one, "
            f"NAME{naming.ending} beside each input.",
        )
        kinds = {"paths": Annotated[list[str], argument], "jobs": JobsOption}

        def run(paths: list[str], jobs: int, **options: Any) -> None:
            pairs = plan(paths, naming)
            if len(pairs) == 1:
                with about(pairs[0][0]):
                    command(*pairs[0], **options)
            else:
                _run_all(command, pairs, jobs, options)

        own = [one for name, one in parameters.items() if name not in ("source", "target")]
        keyword = inspect.Parameter.KEYWORD_ONLY
        run.__name__, run.__doc__ = command.__name__.removesuffix("_file"), command.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("paths", keyword, annotation=kinds["paths"]),
                *(one.replace(kind=keyword, annotation=hints[one.name]) for one in own),
                inspect.Parameter("jobs", keyword, default=1, annotation=kinds["jobs"]),
            ]
        )
        run.__annotations__ = {**{one.name: hints[one.name] for one in own}, **kinds}
        return run

    return decorate


def plan(paths: Sequence[str], naming: Naming) -> list[tuple[str, str]]:
    """(input, output) of each file that ``paths`` name.

    Raises InputError if a folder holds nothing, or if two inputs would have the same output.
    """
    *first, last = paths
    into: Path | None = None
    if first and (os.path.isdir(last) or last.endswith("/")):
        into = Path(last)
        into.mkdir(parents=True, exist_ok=True)
        paths = first
    elif len(paths) == 2 and not os.path.isdir(first[0]) and naming.is_output(last):
        return [(first[0], last)]
    elif first and naming.outputs is None:
        raise InputError(f"{last} is not a folder; several inputs need one as the last argument")
    pairs: dict[str, str] = {}
    for path in paths:
        for source, target in _targets(path, into, naming):
            if target != PIPE and target in pairs:
                raise InputError(f"{pairs[target]} and {source} would both become {target}")
            pairs[target] = source
    return [(source, target) for target, source in pairs.items()]


def _targets(path: str, into: Path | None, naming: Naming) -> Iterator[tuple[str, str]]:
    if path == PIPE:
        yield PIPE, PIPE if into is None else str(into / f"stdin{naming.ending}")
        return
    if not os.path.isdir(path):
        target = naming.default(Path(path))
        yield path, str(target if into is None else into / target.name)
        return
    found = sorted(
        file
        for file in Path(path).rglob("*")
        if file.suffix.lower() in naming.inputs
        and file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith(naming.ending)
    )
    if not found:
        raise InputError(f"{path} holds no file that this command can read")
    for file in found:
        target = naming.default(file)
        yield str(file), str(target if into is None else into / target.relative_to(path))


def _run_all(
    command: Callable[..., None],
    pairs: Sequence[tuple[str, str]],
    jobs: int,
    options: dict[str, Any],
) -> None:
    """Run ``command`` on every pair, even if others fail."""
    for _, target in pairs:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    if jobs == 1:
        with keeping_codecs():
            failed = sum(not _attempt(command, *pair, options) for pair in pairs)
    else:
        work = (command.__module__, command.__name__)
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with ProcessPoolExecutor(
            min(jobs, len(pairs)),
            mp_context=get_context("spawn"),
            initializer=_begin,
            initargs=(VERBOSITY.get(), threads),
        ) as pool:
            try:
                with deaf_children():
                    tasks = [pool.submit(_work, *work, *pair, options) for pair in pairs]
                failed = sum(not task.result() for task in tasks)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in active_children():
                    child.terminate()
                if isinstance(error, InterruptedWork):
                    raise KeyboardInterrupt from None
                if isinstance(error, BrokenProcessPool):
                    raise InputError(
                        "a worker process was killed, perhaps because memory ran out; use fewer "
                        "--jobs"
                    ) from None
                raise
    report(f"{len(pairs) - failed} of {len(pairs)} files done")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _attempt(
    command: Callable[..., None], source: str, target: str, options: dict[str, Any]
) -> bool:
    """Whether it went well; if not, the reason was said."""
    try:
        command(source, target, **options)
    except CodecError as error:
        text = str(error)
        say(f"encodec-rt: {one_line(text if source in text else f'{source}: {text}')}")
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"encodec-rt: {one_line(error.filename or source)}: {error.strerror or error}")
    else:
        return True
    return False


def _begin(verbosity: Verbosity, threads: int) -> None:
    """In each process: take over the verbosity, and leave the other processes their cores."""
    import torch

    from encodec_rt.cli import console

    VERBOSITY.set(verbosity)
    console.keep_codecs()
    torch.set_num_threads(threads)


def _work(module: str, name: str, source: str, target: str, options: dict[str, Any]) -> bool:
    with ended_by_parent():
        return _attempt(getattr(importlib.import_module(module), name), source, target, options)
