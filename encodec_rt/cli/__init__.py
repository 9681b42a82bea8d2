"""The command line: ``encodec-rt --help`` lists the commands.

Modules of this package import what is slow to import inside their functions, so that help and
usage errors come at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from encodec_rt.cli.console import say
from encodec_rt.cli.data import fetch, index, join, shard, split, unshard
from encodec_rt.cli.decode import decode
from encodec_rt.cli.demo import demo
from encodec_rt.cli.encode import encode
from encodec_rt.cli.info import info
from encodec_rt.cli.link import call, listen, token
from encodec_rt.cli.link_demo import demo as link_demo
from encodec_rt.cli.live import devices, live
from encodec_rt.cli.quality import quality
from encodec_rt.cli.roundtrip import roundtrip
from encodec_rt.cli.train import train
from encodec_rt.errors import CodecError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns what goes wrong in a command into one sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except CodecError as error:
            say(f"encodec-rt: {error}")
        except BrokenPipeError:
            # Whoever read our output has seen enough; typer ends quietly, with status 1.
            raise
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            say(f"encodec-rt: {name}{error.strerror or error}")
        raise typer.Exit(EXIT_ERROR)


def _group(help_text: str, *commands: Callable[..., None]) -> typer.Typer:
    group = typer.Typer(
        cls=_Commands,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in commands:
        group.command()(command)
    return group


app = _group(
    "EnCodec as a live codec.", encode, decode, roundtrip, info, demo, live, devices, quality, train
)
app.add_typer(
    _group(
        "Fetch and index the audio to train on, and bring it elsewhere.",
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


def main() -> None:
    """Run the command line and exit: 0 done, 1 broken pipe, 2 refused, 130 interrupted."""
    app(prog_name="encodec-rt")
