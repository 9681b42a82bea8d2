"""What EncodecModel has in common with every model of ``transformers``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.model import checkpoint
from encodec_rt.model.numerics import as_dtype

Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """A model with a configuration, which is loaded from files and saved to them."""

    main_input_name = "input_values"
    base_model_prefix = "encodec"
    supports_gradient_checkpointing = False

    def __init__(self, config: EncodecConfig) -> None:
        """Check and keep the configuration."""
        super().__init__()
        if not isinstance(config, EncodecConfig):
            raise ConfigError(
                f"config of type {type(config).__name__}; pass an EncodecConfig, such as "
                "EncodecConfig.from_dict(config.to_dict()), or use EncodecModel.from_pretrained"
            )
        config.validate()
        self.config = config

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a model as configuration and weights, since torch cannot pickle weight norm."""
        state = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        return _rebuilt, (type(self), self.config, state, self.dtype, self.training)

    def __deepcopy__(self: Model, memo: dict[int, Any]) -> Model:
        """Copy as torch copies any module, since ``__reduce__`` keeps only the weights."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(self.parameters()).dtype

    @property
    def name_or_path(self) -> str:
        """Where the model was loaded from, or an empty string."""
        return self.config.name_or_path

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        config: EncodecConfig | str | Path | None = None,
        **arguments: Any,
    ) -> Model:
        """The stored model, in eval mode and on the CPU.

        It is "default" (the embedded model), a folder with config.json and model.safetensors or
        pytorch_model.bin, whole or in shards, an original ``.th`` file, or a hub id. ``config``
        replaces the stored configuration. ``arguments`` are those of ``transformers``:

        - ``dtype`` (or ``torch_dtype``): the weights' type, float32 by default; "auto" is the one
          they were saved in;
        - ``use_safetensors``: True reads no pickled file, False no safetensors;
        - ``variant``: the part "fp16" of a name such as model.fp16.safetensors;
        - ``revision``, ``subfolder``, ``cache_dir``, ``local_files_only``, ``token``,
          ``force_download``: where the hub and its cache are asked;
        - fields of the configuration, which replace the stored ones;
        - others are accepted where they have no meaning here, and refused by name where they would
          change the result, such as ``device_map``.

        Raises WeightsError naming the file or the tensor that does not fit, and ConfigError.
        """
        return checkpoint.load(cls, pretrained_model_name_or_path, config, arguments)

    @classmethod
    def _from_config(
        cls: type[Model], config: EncodecConfig, *, dtype: torch.dtype | str | None = None
    ) -> Model:
        """A new model with random weights, as ``transformers`` calls it."""
        return cls(config).to(as_dtype(dtype))

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        *,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        **arguments: Any,
    ) -> None:
        """Write config.json and model.safetensors, which ``transformers`` can load too.

        Weights of more than ``max_shard_size``, such as "200MB", are written in shards; ``variant``
        becomes part of the file's name. Nothing is written unless ``is_main_process``. Other
        arguments of ``transformers`` are accepted if they have no effect here; a pickled file and
        an upload are refused. Raises ConfigError.
        """
        if is_main_process:
            checkpoint.save(self, self.config, save_directory, max_shard_size, variant, arguments)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters; codebooks are buffers and not counted.

        The model has no embeddings to exclude.
        """
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if parameter.requires_grad or not only_trainable
        )

    def get_encoder(self) -> nn.Module:
        """The part from waveform to latents."""
        return self.get_submodule("encoder")

    def get_decoder(self) -> nn.Module:
        """The part from latents to waveform."""
        return self.get_submodule("decoder")

    @classmethod
    def can_generate(cls) -> bool:
        """Whether it generates text: never."""
        return False

    def post_init(self) -> None:
        """What subclasses call last in ``transformers``; weights are random before that here."""

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Raises ConfigError: no layer recomputes its activations."""
        raise ConfigError(
            f"{type(self).__name__} does not support gradient checkpointing; train on shorter clips"
        )

    def push_to_hub(self, repo_id: str, **_: Any) -> None:
        """Raises ConfigError: this package reads the hub and never writes to it."""
        raise ConfigError(
            f"models are not uploaded from here: call save_pretrained, then run "
            f"'hf upload {repo_id} FOLDER'"
        )


def _rebuilt(
    kind: type[Model],
    config: EncodecConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    training: bool,
) -> Model:
    model = kind(config).to(next(iter(state.values())).device, dtype)
    model.load_state_dict(state)
    return model.train(training)
