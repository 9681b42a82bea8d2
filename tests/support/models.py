"""Models and audio for tests: small, seeded, and with codebooks that have real choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel, loudness

if TYPE_CHECKING:
    import transformers

SPEECH = Path(__file__).parents[2] / "encodec_rt" / "assets" / "speech_en.flac"


def tiny_config(*, books: tuple[int, ...] = (1, 2, 4), **changes: Any) -> EncodecConfig:
    """A config with a few thousand parameters, a hop of 8 and 4 codebooks; ``changes`` override it.

    ``target_bandwidths`` follow from ``books``, the codebooks of each, unless they are given.
    """
    values: dict[str, Any] = {
        "sampling_rate": 800,
        "hidden_size": 8,
        "num_filters": 4,
        "upsampling_ratios": (4, 2),
        "codebook_size": 16,
        **changes,
    }
    if "target_bandwidths" not in values:
        frame_rate = math.ceil(values["sampling_rate"] / math.prod(values["upsampling_ratios"]))
        bits = math.ceil(math.log2(values["codebook_size"]))
        # 1 % above the exact value, so that rounding cannot cost a codebook.
        values["target_bandwidths"] = tuple(book * frame_rate * bits * 1.01e-3 for book in books)
    return EncodecConfig(**values)


def speech(*shape: int, seed: int = 0) -> Tensor:
    """Recorded speech [..., L] float32, cut at random but seeded places, with a little noise.

    The samples are not resampled to a model's rate; they only have to behave like audio.
    """
    # Imported here, so that a GPU machine without soundfile can run the contract on noise.
    import soundfile

    generator = torch.Generator().manual_seed(seed)
    recording = torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0])
    length = shape[-1]
    recording = recording.repeat(1 + length // len(recording))
    rows = []
    for _ in range(math.prod(shape[:-1])):
        start = int(torch.randint(len(recording) - length, (1,), generator=generator))
        noise = 0.01 * torch.randn(length, generator=generator)
        rows.append(recording[start : start + length] + noise)
    return torch.stack(rows).reshape(shape)


def random_model(config: EncodecConfig, seed: int = 0) -> EncodecModel:
    """A model with random weights and codebooks fitted to its latents, in eval mode.

    The weights preserve a signal's power from layer to layer, and the codebooks come from residual
    k-means of the latents of speech, so every codebook has a real choice in every frame.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = EncodecModel(config).eval()
        for module in model.modules():
            _randomize(module)
        samples = min(24_000, config.hop_length * 4 * config.codebook_size)
        audio = speech(2, config.audio_channels, samples, seed=seed)
        if config.normalize:
            audio = audio / loudness(audio)
        latents = model.encoder(audio).transpose(1, 2).reshape(-1, config.hidden_size)
        _fit_codebooks(model, _at_least(latents, 4 * config.codebook_size))
        _level_output(model, latents)
    return model


def hf_twin(model: EncodecModel) -> transformers.EncodecModel:
    """The ``transformers`` model with the same configuration and weights, in eval mode."""
    from transformers import EncodecConfig as HfConfig
    from transformers import EncodecModel as HfModel

    names = [field.name for field in fields(model.config)]
    twin = HfModel(HfConfig(**{name: getattr(model.config, name) for name in names}))
    twin.load_state_dict(model.state_dict())
    twin.eval()
    return twin


def hf_encoded(
    twin: transformers.EncodecModel,
    audio: Tensor,
    mask: Tensor | None = None,
    bandwidth: float | None = None,
) -> tuple[Tensor, Sequence[Tensor | None], int]:
    """Codes, scales and padding frames from ``transformers``."""
    codes, scales, padding = tuple(twin.encode(audio, mask, bandwidth, return_dict=False))
    assert isinstance(codes, Tensor)
    assert isinstance(scales, (Tensor, list))
    assert isinstance(padding, int)
    return codes, list(scales), padding


def hf_decoded(
    twin: transformers.EncodecModel,
    codes: Tensor,
    scales: Sequence[Tensor | None],
    mask: Tensor | None = None,
    padding: int = 0,
) -> Tensor:
    """The audio that ``transformers`` decodes."""
    decoded = twin.decode(codes, scales, mask, return_dict=False, last_frame_pad_length=padding)[0]  # type: ignore[arg-type]
    assert isinstance(decoded, Tensor)
    return decoded


def _randomize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        taps = module.kernel_size[0] / (
            module.stride[0] if isinstance(module, nn.ConvTranspose1d) else 1
        )
        scale = 1.2 / math.sqrt(module.in_channels * taps)
        weight = scale * torch.randn_like(module.weight)
        if is_parametrized(module, "weight"):
            parametrizations = module.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            magnitude, direction = parametrizations["weight"].parameters()
            magnitude.copy_(weight.norm(dim=(1, 2), keepdim=True))
            # The direction's norm has no effect, and can have any value after training.
            direction.copy_(weight * (torch.rand(len(weight), 1, 1) + 0.5))
        else:
            module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.normal_(std=0.05)
    elif isinstance(module, nn.GroupNorm):
        module.weight.uniform_(0.7, 1.3)
        module.bias.normal_(std=0.1)


def _at_least(rows: Tensor, count: int) -> Tensor:
    """[N, D] -> [max(N, count), D], padded with noisy copies."""
    missing = max(0, count - len(rows))
    copies = rows[torch.randint(len(rows), (missing,))]
    return torch.cat([rows, copies + 0.6 * rows.std(0) * torch.randn_like(copies)])


def _fit_codebooks(model: EncodecModel, rows: Tensor) -> None:
    size, count = model.config.codebook_size, len(rows)
    for layer in model.quantizer.stages:
        book = layer.codebook
        # The next codebook is fitted to the residuals of rows that this one was not fitted to.
        seen, unseen = rows[torch.randperm(count)].chunk(2)
        book.embed.copy_(_k_means(seen, size))
        book.embed_avg.copy_(book.embed)
        book.cluster_size.fill_(1.0)
        rows = _at_least(unseen - book.decode(book.encode(unseen)), count)


def _level_output(model: EncodecModel, latents: Tensor) -> None:
    """Scale the decoder's output to the level of speech."""
    last = dict(model.decoder.layers[-1].named_parameters())
    gain = 0.1 / model.decoder(latents[:100].t()[None]).std()
    if "norm.weight" in last:
        last["norm.weight"].mul_(gain)
        last["norm.bias"].mul_(gain)
    else:
        last["conv.parametrizations.weight.original0"].mul_(gain)
        last["conv.bias"].mul_(gain)


def _k_means(rows: Tensor, size: int, *, rounds: int = 2) -> Tensor:
    """Rows [N, D] -> centres [size, D]."""
    centres = rows[torch.randperm(len(rows))[:size]]
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        counts = torch.bincount(nearest, minlength=size)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def snr_db(reference: Tensor | np.ndarray, given: Tensor | np.ndarray) -> float:
    """Signal-to-noise ratio of ``given`` in dB; infinite if it equals ``reference``."""
    wanted = torch.as_tensor(reference).double()
    error = torch.as_tensor(given).double() - wanted
    power = float(error.pow(2).sum())
    return math.inf if power == 0 else 10 * math.log10(float(wanted.pow(2).sum()) / power)
