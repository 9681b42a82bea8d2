"""Whole corpora of audio to codes and back: ``encodec-rt tokenize`` and ``detokenize``."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encodec_rt.corpus.summary import Summary
    from encodec_rt.corpus.tokenizing import Progress, tokenize

__all__ = ["Progress", "Summary", "tokenize"]

_HOMES = {
    "Progress": "encodec_rt.corpus.tokenizing",
    "Summary": "encodec_rt.corpus.summary",
    "tokenize": "encodec_rt.corpus.tokenizing",
}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: each needs packages of its own."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
