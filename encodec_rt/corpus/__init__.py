"""Whole corpora of audio to codes and back: ``encodec-rt tokenize`` and ``detokenize``."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encodec_rt.corpus.dataset import CodesDataset
    from encodec_rt.corpus.detokenizing import detokenize
    from encodec_rt.corpus.job import RunProgress
    from encodec_rt.corpus.summary import Summary
    from encodec_rt.corpus.tokenizing import tokenize

__all__ = ["CodesDataset", "RunProgress", "Summary", "detokenize", "tokenize"]

_HOMES = {
    "CodesDataset": "encodec_rt.corpus.dataset",
    "RunProgress": "encodec_rt.corpus.job",
    "Summary": "encodec_rt.corpus.summary",
    "detokenize": "encodec_rt.corpus.detokenizing",
    "tokenize": "encodec_rt.corpus.tokenizing",
}


def __getattr__(name: str) -> object:
    """A public name, imported on first use: each needs different packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
