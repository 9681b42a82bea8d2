"""Export of a trained model for inference: float16, with weight norm folded into the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from encodec_rt.atomic import replacing
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import TRAINING_ONLY
from encodec_rt.model.tensor_files import SAFE_NAME


def folded_tensors(model: EncodecModel) -> dict[str, Tensor]:
    """The tensors that inference needs, by name, in float32: weights, biases and codebooks."""
    tensors = {
        name: value.detach().cpu().float()
        for name, value in model.state_dict().items()
        if ".parametrizations." not in name and name.rpartition(".")[2] not in TRAINING_ONLY
    }
    for name, module in model.named_modules():
        if is_parametrized(module, "weight"):
            tensors[f"{name}.weight"] = module.weight.detach().cpu().float()
    return tensors


def export_weights(model: EncodecModel, folder: Path) -> None:
    """Write ``model`` to ``folder`` as config.json and float16 model.safetensors.

    ``EncodecModel.from_pretrained(folder)`` reads it. The buffers that only training needs are left
    out.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.to(torch.float16) for name, value in folded_tensors(model).items()}
    with replacing(folder / SAFE_NAME, force=True) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
