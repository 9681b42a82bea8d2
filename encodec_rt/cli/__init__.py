"""The command line: ``encodec-rt --help`` lists the commands.

Modules of this package import slow dependencies inside their functions, so that help and usage
errors appear immediately.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from encodec_rt.cli.console import one_line, say
from encodec_rt.cli.data import fetch, index, join, shard, split, unshard
from encodec_rt.cli.decode import decode
from encodec_rt.cli.demo import demo
from encodec_rt.cli.edit import cat, cut, scale
from encodec_rt.cli.encode import encode
from encodec_rt.cli.export import onnx as export_onnx
from encodec_rt.cli.export import web as export_web
from encodec_rt.cli.habits import VersionOption, with_habits
from encodec_rt.cli.info import info
from encodec_rt.cli.interrupts import (
    cut_short,
    exit_status,
    handle_requests_to_end,
)
from encodec_rt.cli.link import call, listen, token
from encodec_rt.cli.link_demo import demo as link_demo
from encodec_rt.cli.live import devices, live
from encodec_rt.cli.play import play
from encodec_rt.cli.quality import quality
from encodec_rt.cli.roundtrip import roundtrip
from encodec_rt.cli.serve import serve
from encodec_rt.cli.standard_streams import discard_unwritten, prepare_standard_streams
from encodec_rt.cli.tokenize import detokenize, tokenize
from encodec_rt.cli.train import train
from encodec_rt.cli.train_lm import lm
from encodec_rt.cli.web import web
from encodec_rt.errors import CodecError
from encodec_rt.extras import missing

EXIT_ERROR = 2
_NO_MEMORY = ("out of memory", "allocate memory")


@contextmanager
def _errors_in_a_sentence() -> Iterator[None]:
    """Turn what goes wrong in a command into one sentence and an exit status."""
    try:
        yield
        return
    except KeyboardInterrupt:
        raise typer.Exit(exit_status()) from None
    except CodecError as error:
        say(f"encodec-rt: {one_line(error)}")
    except ImportError as error:
        if cut_short():
            # An interrupted import fails with whatever was half imported.
            raise typer.Exit(exit_status()) from None
        refusal: Exception | None = missing(error, "this command")
        if refusal is None and (error.name or "").startswith("encodec_rt"):
            raise
        # A library that is installed but cannot be loaded, for example for lack of memory.
        say(f"encodec-rt: {one_line(refusal or error)}")
    except (MemoryError, RuntimeError) as error:
        # torch says so with a RuntimeError.
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        say("encodec-rt: there is not enough memory for this")
    except BrokenPipeError:
        # Whoever read our output has seen enough; typer ends quietly, with status 1.
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        say(f"encodec-rt: {one_line(name)}{error.strerror or error}")
    # A library in whose callback the interruption was lost fails with an error of its own.
    raise typer.Exit(exit_status() if cut_short() else EXIT_ERROR)


class _Commands(TyperGroup):
    """Commands that end in a sentence, whatever goes wrong."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parse the arguments, which is when help and version are printed."""
        with _errors_in_a_sentence():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was given."""
        with _errors_in_a_sentence():
            return super().invoke(ctx)


def _group(help_text: str, *commands: Callable[..., None], completion: bool = False) -> typer.Typer:
    group = typer.Typer(
        cls=_Commands,
        help=help_text,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @group.callback()
    def options(version: VersionOption = False) -> None:
        pass

    for command in commands:
        group.command()(with_habits(command))
    return group


class _Training(_Commands):
    """``train RUN ...`` is ``train model RUN ...``; ``train lm`` trains a language model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the name of the command that is meant."""
        if args and args[0] not in (*self.commands, "--help", "-h", "--version"):
            args = ["model", *args]
        return super().parse_args(ctx, args)


app = _group(
    "EnCodec for live audio: encode, decode, stream, call and serve.",
    encode,
    decode,
    roundtrip,
    info,
    play,
    scale,
    cut,
    cat,
    demo,
    live,
    devices,
    web,
    serve,
    quality,
    tokenize,
    detokenize,
    completion=True,
)
training = _group("Train a model, or a language model of its codes.", lm)
training.command("model")(with_habits(train))
app.add_typer(training, name="train", cls=_Training)
app.add_typer(
    _group(
        "Fetch, index and transfer the audio to train on.",
        fetch,
        index,
        shard,
        unshard,
        split,
        join,
    ),
    name="data",
)
app.add_typer(_group("Call another machine.", listen, call, token, link_demo), name="link")
app.add_typer(_group("Export a model to other runtimes.", export_web, export_onnx), name="export")


def main() -> None:
    """Run the command line and exit: 0 done, 1 broken pipe, 2 refused, 130 interrupted.

    SIGTERM and SIGHUP end a command as Ctrl-C does, with 143 and 129.
    """
    prepare_standard_streams()
    handle_requests_to_end()
    try:
        app(prog_name="encodec-rt")
    except Exception:
        if not cut_short():
            raise
    except KeyboardInterrupt:
        pass
    finally:
        discard_unwritten()
    sys.exit(exit_status())
