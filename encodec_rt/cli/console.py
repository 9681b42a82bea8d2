"""What the commands share: printing messages, opening files and loading codecs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast, get_args

import typer

from encodec_rt.cli.habits import VERBOSITY, Verbosity
from encodec_rt.errors import ConfigError, InputError, PacketError

if TYPE_CHECKING:
    from rich.console import Console

    from encodec_rt.config import EncodecConfig
    from encodec_rt.lm.paper import PaperLm
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.streaming.weights import Start
    from encodec_rt.types import Audio

PIPE = "-"
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def say(text: str) -> None:
    """One line on standard error, which is where everything but the output itself goes.

    Bytes of names that are not UTF-8 are escaped, and so are terminal control characters.
    """
    typer.echo(printable(text), err=True)


def printable(text: str) -> str:
    """``text`` in a form that any stream can take, and that cannot control a terminal.

    It escapes the bytes of names that are not UTF-8, and all control characters except newlines.
    """
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", shown)


def one_line(text: object) -> str:
    """``text`` without newlines, with which a file's name or tag could fake other lines."""
    return str(text).replace("\n", "\\n")


def put(text: str) -> None:
    """One line on standard output. Raises InputError if it is closed."""
    from encodec_rt.atomic import naming

    _check_output_stream()
    with naming("standard output"):
        typer.echo(printable(text))


def output_console() -> Console:
    """Standard output for tables. Raises InputError if it is closed."""
    from rich.console import Console

    _check_output_stream()
    return Console()


def _check_output_stream() -> None:
    if sys.stdout is None:
        raise InputError("standard output is closed; open it, as the result is printed there")


def report(text: str) -> None:
    """A message about what was done, which --quiet suppresses."""
    if VERBOSITY.get() >= Verbosity.NORMAL:
        say(text)


def detail(text: str) -> None:
    """A message that only --verbose shows."""
    if VERBOSITY.get() >= Verbosity.VERBOSE:
        say(text)


def report_abandoned(*recordings: Path | None) -> None:
    """Say where killed programs left recordings, in the folders of ``recordings``."""
    from encodec_rt.atomic import abandoned_recordings

    for folder in sorted({path.absolute().parent for path in recordings if path is not None}):
        for part in abandoned_recordings(folder):
            say(f"note: an interrupted recording is in {part}")


def status_console() -> Console:
    """Standard error, for what is shown while a session runs: nothing with --quiet."""
    from rich.console import Console

    quiet = VERBOSITY.get() == Verbosity.QUIET
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=quiet)


def event_printer(console: Console) -> Callable[[str], None]:
    """Prints errors above what ``console`` shows, even with --quiet."""
    return say if console.quiet else console.print


_KEPT: ContextVar[dict[tuple[str, str, str], Codec] | None] = ContextVar("kept", default=None)


def load_codec(model: str, device: str, backend: str) -> Codec:
    """The codec that the common options ask for."""
    from encodec_rt.streaming.codec import Codec

    kept, key = _KEPT.get(), (model, device, backend)
    if kept is not None and key in kept:
        return kept[key]
    check_device(device)
    began = time.perf_counter()
    codec = Codec.load(model, device=device, backend=backend)
    detail(f"model {codec.name} on {device}, loaded in {time.perf_counter() - began:.2f} s")
    if kept is not None:
        kept[key] = codec
    return codec


def keep_codecs() -> None:
    """From now on load each codec only once, for a process that works on many files."""
    _KEPT.set({})


@contextmanager
def keeping_codecs() -> Iterator[None]:
    """Within the block, load each codec once."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def device_choice(text: str | None) -> int | str | None:
    """A sound device as ``--input`` and ``--output`` name it: an index, or a part of its name."""
    return int(text) if text is not None and text.isdecimal() else text


def check_device(device: str) -> None:
    """Raise ConfigError unless torch can compute on a device of that name here."""
    import torch

    try:
        # A number is read back, which a device without memory ("meta") cannot do.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here: {reason}") from error


def check_output(target: str, *, suffix: str | tuple[str, ...], force: bool) -> None:
    """Raise InputError unless bytes may be written to ``target``, a new file or "-"."""
    from encodec_rt.atomic import check_target, is_stream, standard_output

    if target == PIPE:
        standard_output()
        return
    if not target.endswith(suffix) and not is_stream(target):
        names = suffix if isinstance(suffix, str) else " or ".join(suffix)
        raise InputError(f"{target}: name this output {names}")
    check_target(target, force=force)


def check_start(start: str) -> Start:
    """``start`` as one of the three policies. Raises ConfigError for any other."""
    from encodec_rt.streaming.weights import Start

    for policy in get_args(Start):
        if start == policy:
            return cast("Start", policy)
    raise ConfigError(f"start={start!r}; accepted: {', '.join(get_args(Start))}")


def open_input(source: str) -> BinaryIO:
    """The file ``source``, or standard input for "-", to read bytes from."""
    from encodec_rt.audio.source import standard_input

    if source == PIPE:
        return standard_input()
    path = Path(source)
    if path.is_dir() or not path.exists():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{source} {problem}; give a file, or '-' for standard input")
    return path.open("rb")


def load_paper_lm(path: Path, config: EncodecConfig) -> PaperLm:
    """The original package's language model in ``path``, whose hash is shown."""
    from encodec_rt.lm.paper import PaperLm

    model = PaperLm.load(path, config)
    say(f"{path}: SHA-256 {model.sha256}")
    return model


class Rejoined:
    """A file to read whose first bytes, ``head``, were read from it already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes, at least one unless the file has ended."""
        if not self._head:
            return self._file.read(size)
        given = self._head if size < 0 else self._head[:size]
        self._head = self._head[len(given) :]
        return given + (self._file.read() if size < 0 else b"")


def look_at(file: BinaryIO, size: int = 4) -> tuple[bytes, BinaryIO]:
    """The first ``size`` bytes of a file, which may be a pipe, and the file from its start."""
    head = b""
    while len(head) < size and (piece := file.read(size - len(head))):
        head += piece
    return head, cast("BinaryIO", Rejoined(head, file))


def model_folder(model: str) -> Path | None:
    """The folder of a model, if it is one: code tables and language models may lie in it."""
    path = Path(model)
    return path if path.is_dir() else None


def check_model(named: str, codec: Codec) -> None:
    """Raise PacketError unless ``codec`` is the model that a file names."""
    if named != codec.name:
        raise PacketError(
            f"the stream was made with the model {named!r}, but this one is {codec.name!r}; "
            "give the folder or file of the right weights with --model"
        )


class Meter:
    """Passes on blocks of audio and counts them, with a progress bar on a terminal."""

    def __init__(
        self, blocks: Iterable[Audio], *, label: str, rate_hz: int, total_s: float | None
    ) -> None:
        self.samples = 0
        self.began = time.perf_counter()
        self._blocks = blocks
        self._label = label
        self._rate_hz = rate_hz
        self._total_s = total_s

    def __iter__(self) -> Iterator[Audio]:
        """The blocks."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} s of audio"),
            TimeRemainingColumn(),
        )
        hidden = not console.is_terminal or VERBOSITY.get() == Verbosity.QUIET
        with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
            task = bar.add_task(self._label, total=self._total_s)
            for block in self._blocks:
                self.samples += block.shape[1]
                yield block
                bar.update(task, completed=self.seconds)

    @property
    def seconds(self) -> float:
        """The length of the audio so far."""
        return self.samples / self._rate_hz

    def summary(self) -> str:
        """How long the audio is, and how much faster than real time it passed."""
        wall = time.perf_counter() - self.began
        return (
            f"{self.seconds:.2f} s of audio in {wall:.2f} s ({self.seconds / wall:.1f}x real time)"
        )


def warn_of_clipping(clipped: int, samples: int) -> None:
    """Say so if samples were beyond full scale."""
    if clipped:
        share = 100 * clipped / max(1, samples)
        say(f"warning: {clipped} samples ({share:.3g} %) were beyond full scale and were clipped")
