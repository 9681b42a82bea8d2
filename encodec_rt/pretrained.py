"""Where the files of a pretrained model are, and how they are read and written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError, WeightsError

DEFAULT = "default"
CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
HUB_TIMEOUT_S = 2.0
"""How long the hub may take to answer before the cache is used instead."""

_ACCEPTED = (
    f'"{DEFAULT}", a folder with {CONFIG_NAME} and model.safetensors or pytorch_model.bin, '
    'a hub id "owner/name", or, for a model, an original .th file'
)
# A path to a missing file is not a hub id, even if it looks like one.
_HUB_ID = re.compile(r"(?!.*\.(th|pt|bin|json|safetensors)$)[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*")


@dataclass(frozen=True)
class PretrainedSource:
    """A pretrained model, and how to get it from the hub if it is not local.

    ``name`` is "default" (the embedded model), a folder, or a hub id, of which ``revision`` may
    name a version; the files are in its ``subfolder``. The rest applies only to the hub: the cache
    folder, whether to read only the cache, an access token, and whether to download cached files
    again.
    """

    name: str | Path
    revision: str | None = None
    subfolder: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a name, revision or subfolder of the wrong type."""
        if not isinstance(self.name, (str, os.PathLike)):
            raise ConfigError(
                f"a model's source of type {type(self.name).__name__}; accepted: {_ACCEPTED}"
            )
        for name, value in (("revision", self.revision), ("subfolder", self.subfolder)):
            if not isinstance(value, (str, type(None))):
                raise ConfigError(f"{name}={value!r}; it must be a string")

    def find(self, *names: str) -> Path:
        """The first of the files ``names`` that exists. Raises WeightsError.

        The network is used only for a hub id.
        """
        folder = default_folder() if self.name == DEFAULT else Path(self.name)
        if folder.is_dir():
            folder /= self.subfolder or ""
            for name in names:
                if (folder / name).is_file():
                    return folder / name
            raise WeightsError(f"the folder {folder} has no {_listed(names)}")
        if not folder.exists() and _HUB_ID.fullmatch(str(self.name)):
            return self._fetch(names)
        given = "is a single file" if folder.exists() else "does not exist"
        raise WeightsError(f"{str(self.name)!r} {given}; accepted: {_ACCEPTED}")

    def _fetch(self, names: tuple[str, ...]) -> Path:
        # Imported here because it is slow to import, and few need it.
        try:
            import huggingface_hub
        except ImportError:
            raise WeightsError(
                f"{str(self.name)!r} is not a folder here, and models of the Hugging Face hub need "
                "huggingface_hub: pip install 'encodec-rt[hub]', or pass a folder"
            ) from None
        reason, find = "", self._download if self._online else self._cached
        for name in names:
            try:
                return find(name)
            except Exception as error:  # noqa: BLE001 - the library's HTTP errors vary by version
                reason = self._reason(error, names)
                if not isinstance(error, huggingface_hub.errors.EntryNotFoundError):
                    break
        # The library's chain of errors is long and says no more than this.
        raise WeightsError(
            f"{str(self.name)!r} is not a folder here, and as a hub id: {reason}; on a machine "
            f"with a network run 'hf download {self.name} --local-dir FOLDER', and pass that folder"
        )

    def _download(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(
                hf_hub_download(
                    str(self.name),
                    name,
                    subfolder=self.subfolder or None,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    force_download=self.force_download,
                )
            )
        except LocalEntryNotFoundError as error:
            # This is an EntryNotFoundError, but says nothing about what the hub has.
            raise ConnectionError from error

    def _cached(self, name: str) -> Path:
        """From the cache, without the network that hf_hub_download uses even for local files."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        path = f"{self.subfolder}/{name}" if self.subfolder else name
        found = try_to_load_from_cache(
            str(self.name), path, cache_dir=self.cache_dir, revision=self.revision
        )
        if not isinstance(found, str):
            raise LocalEntryNotFoundError(path)
        return Path(found)

    @cached_property
    def _online(self) -> bool:
        """Whether to ask the hub; by itself the library would retry, and log, for half a minute."""
        return not self.local_files_only and _hub_answers()

    def _reason(self, error: Exception, names: tuple[str, ...]) -> str:
        from huggingface_hub import errors

        if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
            if self.local_files_only:
                return "nothing is cached, and local_files_only forbids asking the hub"
            return "the hub cannot be reached and nothing is cached"
        if isinstance(error, errors.EntryNotFoundError):
            return f"it has no {_listed(names)}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"the model has no revision {self.revision!r}"
        if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
            return "the hub has no such public model"
        return f"the download failed ({type(error).__name__})"


def _listed(names: tuple[str, ...]) -> str:
    """The names of whole files; index files of shards are left out."""
    return " and no ".join(name for name in names if ".index." not in name)


def _hub_answers() -> bool:
    """Whether the hub's address answers within HUB_TIMEOUT_S.

    It runs in a thread, since a request's timeout does not cover the DNS lookup; the request uses
    the library's own session, which knows about proxies and offline mode.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    answered: Future[None] = Future()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - whichever library asks, it is unreachable
            answered.set_exception(error)
        else:
            answered.set_result(None)

    Thread(target=ask, name="hub-probe", daemon=True).start()
    try:
        error = answered.exception(HUB_TIMEOUT_S)
    except TimeoutError:
        return False
    return error is None


def default_folder() -> Path:
    """The folder of the embedded model; raises WeightsError where it was not installed."""
    folder = Path(str(resources.files("encodec_rt"))) / "weights"
    if not (folder / CONFIG_NAME).is_file():
        raise WeightsError(f"this installation embeds no default model; accepted: {_ACCEPTED}")
    return folder


# Arguments that tell transformers how to load, and cannot change what is loaded here.
_WITHOUT_EFFECT = frozenset(
    (
        "_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "attn_implementation",
        "code_revision", "disable_mmap", "experts_implementation", "generation_config",
        "ignore_mismatched_sizes", "local_dir_use_symlinks", "low_cpu_mem_usage", "max_memory",
        "mirror", "offload_buffers", "offload_folder", "offload_state_dict", "resume_download",
        "trust_remote_code", "use_fast",
    )
)  # fmt: skip

# Arguments that would change the result, the value that asks for no change, and what to do instead.
_REFUSED: Mapping[str, tuple[object, str]] = MappingProxyType(
    {
        "device_map": ("cpu", "a model loads on the CPU; move it with .to(device)"),
        "output_loading_info": (False, "a model loads whole or is refused"),
        "proxies": (None, "set the environment's HTTPS_PROXY"),
        "quantization_config": (None, "weights are loaded in one of torch's floating types"),
        "return_dict": (True, "pass it to encode, decode or forward"),
        "return_unused_kwargs": (False, "an argument that is not used is refused"),
        "state_dict": (None, "build EncodecModel(config) and call load_state_dict"),
        "weights_only": (True, "nothing but tensors is ever unpickled"),
    }
)

_WITHOUT_EFFECT_IN_SAVING = frozenset(
    ("commit_message", "create_pr", "private", "repo_id", "save_original_format",
     "save_peft_format", "token", "use_auth_token")
)  # fmt: skip
_REFUSED_IN_SAVING: Mapping[str, tuple[object, str]] = MappingProxyType(
    {
        "distributed_checkpoint": (False, "a model is saved from one process"),
        "push_to_hub": (False, "save it, then run 'hf upload'"),
        "safe_serialization": (True, "only safetensors are written, which need no unpickling"),
        "save_function": (None, "only safetensors are written"),
        "state_dict": (None, "load it into the model first"),
    }
)


def sort_arguments(
    caller: str, given: Mapping[str, Any], own: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments as transformers takes them -> (those of ``PretrainedSource``, those in ``own``).

    Arguments without effect here are ignored. Raises ConfigError, naming the argument, for one that
    would change the result or is unknown.
    """
    names = {field.name for field in fields(PretrainedSource)} - {"name"}
    for_source, for_caller = {}, {}
    for name, value in given.items():
        if name == "use_auth_token":
            for_source["token"] = value
        elif name in names:
            for_source[name] = value
        elif name in own:
            for_caller[name] = value
        elif name in _REFUSED:
            accepted, instead = _REFUSED[name]
            if value is not None and str(value) != str(accepted):
                raise ConfigError(f"{caller} does not take {name}={value!r}: {instead}")
        elif name not in _WITHOUT_EFFECT:
            raise ConfigError(f"{caller} has no argument {name!r}; check how it is spelled")
    return for_source, for_caller


def check_save_arguments(caller: str, given: Mapping[str, Any]) -> None:
    """Ignore the arguments of transformers' save_pretrained that have no effect here.

    Raises ConfigError, naming the argument, for one that asks for something else.
    """
    for name, value in given.items():
        if name in _REFUSED_IN_SAVING:
            accepted, instead = _REFUSED_IN_SAVING[name]
            if value is not None and value != accepted:
                raise ConfigError(f"{caller} does not take {name}={value!r}: {instead}")
        elif name not in _WITHOUT_EFFECT_IN_SAVING:
            raise ConfigError(f"{caller} has no argument {name!r}; check how it is spelled")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ConfigError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys; the file appears only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, force=True) as temporary:
        text = json.dumps(values, indent=2, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")
