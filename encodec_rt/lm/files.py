"""Finds the language model that belongs to a codec's model, or the one that a stream names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from encodec_rt.errors import WeightsError
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.pretrained import default_folder

LMS_PATTERN = "code_lm*.safetensors"
EARLIER = "earlier"
"""Folder within a model's, of language models that files name and that new files no longer use."""


def lm_for_model(codes_sha256: bytes, folder: Path | None = None) -> IntegerLm | None:
    """The language model for the codes of a model, or None.

    It is searched for in the package and in the model's ``folder``, which takes precedence.
    """
    found = [model for model in _all(folder) if model.codes_sha256 == codes_sha256]
    return found[-1] if found else None


def lm_by_hash(sha256: bytes, folder: Path | None = None, path: Path | None = None) -> IntegerLm:
    """The language model that a stream names by its hash.

    It is searched for in the package and in ``folder``, the EARLIER ones too, or only in the file
    ``path`` if given. Raises WeightsError if it is not there.
    """
    if path is not None:
        model = IntegerLm.load(path)
        if model.sha256 != sha256:
            raise WeightsError(
                f"the stream needs the language model {sha256.hex()[:16]}, but {path} is "
                f"{model.sha256.hex()[:16]}"
            )
        return model
    for model in chain(_all(folder), _all(folder, EARLIER)):
        if model.sha256 == sha256:
            return model
    raise WeightsError(
        f"the stream needs the language model {sha256.hex()[:16]}, which is neither in this "
        "installation nor in the model's folder; name its file with --lm"
    )


def _all(folder: Path | None, within: str = "") -> Iterator[IntegerLm]:
    for place in filter(None, (default_folder(), folder)):
        for path in sorted((place / within).glob(LMS_PATTERN)):
            yield IntegerLm.load(path)
