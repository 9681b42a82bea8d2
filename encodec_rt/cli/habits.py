"""What every command takes: --quiet, --verbose, --version; and how loudly it speaks then."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from encodec_rt.errors import ConfigError


class Verbosity(enum.IntEnum):
    """How much is said on standard error. Warnings and errors are always said."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_MOST_USED = (
    *("bandwidth", "data", "target", "begin", "end", "play", "record", "save", "host", "port"),
    *("once", "fingerprint", "source", "sink", "duration", "preset", "steps", "minutes", "force"),
)
_LEAST_USED = ("device", "backend", "lm", "real_time", "stats_json", "ice_server", "token_file")
VERBOSITY: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity.NORMAL)


def _show_version(wanted: bool) -> None:
    if wanted:
        from encodec_rt.version import __version__

        typer.echo(f"encodec-rt {__version__}")
        raise typer.Exit


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.", show_default=False)
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print more about what is done.", show_default=False)
]
VersionOption = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Print the version and exit.",
        is_eager=True,
        callback=_show_version,
        show_default=False,
    ),
]


def hints_of(of: Callable[..., Any]) -> dict[str, Any]:
    """What typer is to know of each parameter, as ``Annotated``.

    Where the default is None, Python 3.10 gives Optional[Annotated[...]], in which typer sees no
    option.
    """
    hints = get_type_hints(of, include_extras=True)
    for name, hint in hints.items():
        members = get_args(hint)
        if type(None) in members and hasattr(members[0], "__metadata__"):
            hints[name] = members[0]
    return hints


def with_habits(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer, with these options after its own."""
    added = {"quiet": QuietOption, "verbose": VerboseOption, "version": VersionOption}
    parameters = sorted(inspect.signature(command).parameters.values(), key=_rank)
    hints = hints_of(command)
    _dress(hints, inspect.signature(command).parameters)

    names = {name: _option_name(name, hint) for name, hint in hints.items()}

    def run(quiet: bool, verbose: bool, version: bool, **given: Any) -> None:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose exclude each other")
        _check_finite(names, given)
        level = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        token = VERBOSITY.set(level)
        try:
            command(**given)
        finally:
            VERBOSITY.reset(token)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [one.replace(kind=keyword, annotation=hints[one.name]) for one in parameters]
    common = [
        inspect.Parameter(name, keyword, default=False, annotation=kind)
        for name, kind in added.items()
    ]
    run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in [*own, *common]}
    return run


def _rank(parameter: inspect.Parameter) -> int:
    """The place in help: what is needed, what is used most, the rest, and what few need."""
    if parameter.default is inspect.Parameter.empty:
        return 0
    if parameter.name in _MOST_USED:
        return 1 + _MOST_USED.index(parameter.name)
    return 100 + (_LEAST_USED.index(parameter.name) + 1 if parameter.name in _LEAST_USED else 0)


def _dress(hints: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Say in words what an option takes, and no default of a flag that is off by default."""
    for name, hint in hints.items():
        kind = str(getattr(hint, "__origin__", hint))
        for info in getattr(hint, "__metadata__", ()):
            if not isinstance(info, OptionInfo):
                continue
            if "bool" in kind:
                info.show_default = parameters[name].default is True
            elif info.metavar is None:
                words = {"Path": "FILE", "int": "NUMBER", "float": "NUMBER"}
                info.metavar = next((words[one] for one in words if one in kind), "TEXT")


def _option_name(name: str, hint: Any) -> str:
    """What users call the parameter ``name``."""
    for info in getattr(hint, "__metadata__", ()):
        for given in getattr(info, "param_decls", None) or ():
            if given.startswith("--"):
                return str(given)
    return f"--{name.replace('_', '-')}"


def _check_finite(names: dict[str, str], given: dict[str, Any]) -> None:
    """Raise ConfigError for NaN and infinity; NaN passes every comparison with a bound."""
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{names[name]} {value:g}; a finite number is needed")
