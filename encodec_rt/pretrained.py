"""Where the files of a pretrained model lie, and how they are read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError, WeightsError

DEFAULT = "default"
CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"

_ACCEPTED = (
    f'"{DEFAULT}", a folder with {CONFIG_NAME} and model.safetensors or pytorch_model.bin, '
    'a hub id "owner/name", or, for a model, an original .th file'
)
# A missing file is no hub id, however much its path looks like one.
_HUB_ID = re.compile(r"(?!.*\.(th|pt|bin|json|safetensors)$)[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*")


def find_file(source: str | Path, *names: str, revision: str | None = None) -> Path:
    """The first of the files ``names`` that ``source`` has.

    ``source`` is "default" (the embedded model), a folder, or a hub id, of which ``revision`` may
    name a version. The network is used for a hub id alone. Raises WeightsError.
    """
    folder = default_folder() if source == DEFAULT else Path(source)
    if folder.is_dir():
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise WeightsError(f"the folder {folder} has no {' and no '.join(names)}")
    if not folder.exists() and _HUB_ID.fullmatch(str(source)):
        return _fetch(str(source), names, revision)
    given = "is a single file" if folder.exists() else "does not exist"
    raise WeightsError(f"{str(source)!r} {given}; accepted: {_ACCEPTED}")


def default_folder() -> Path:
    """The folder of the embedded model; raises WeightsError where it was not installed."""
    folder = Path(str(resources.files("encodec_rt"))) / "weights"
    if not (folder / CONFIG_NAME).is_file():
        raise WeightsError(f"this installation embeds no default model; accepted: {_ACCEPTED}")
    return folder


def _fetch(hub_id: str, names: tuple[str, ...], revision: str | None) -> Path:
    # Imported here because it takes longer than all the rest, and few need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision))
        except (RepositoryNotFoundError, HFValidationError):
            reason = "the hub has no such public model"
        except RevisionNotFoundError:
            reason = f"the model has no revision {revision!r}"
        except LocalEntryNotFoundError:
            reason = "the hub cannot be reached and nothing is cached"
        except EntryNotFoundError:
            reason = f"it has no {' and no '.join(names)}"
            continue
        except OSError as error:
            reason = f"the download failed ({type(error).__name__})"
        break
    # The library's own chain of errors is long and says no more than this.
    raise WeightsError(
        f"{hub_id!r} is no folder here, and as a hub id: {reason}; on a machine with a network "
        f"run 'hf download {hub_id} --local-dir FOLDER', and pass that folder"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ConfigError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, with sorted keys; the file is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, force=True) as temporary:
        text = json.dumps(values, indent=2, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")
