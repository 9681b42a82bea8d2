"""The original ``encodec`` package, for tests that compare with it or need files that it writes.

It imports torchaudio only for resampling and file access. That package is large and needs a build
that matches torch's, so an empty module takes its place.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel

if "torchaudio" not in sys.modules:
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", loader=None)
    sys.modules["torchaudio"] = stand_in

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import encodec as encodec
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer


def upstream_model(config: EncodecConfig, name: str = "unset") -> encodec.EncodecModel:
    """A random ``encodec.EncodecModel`` in eval mode, for a config that it supports."""
    common = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "ratios": list(config.upsampling_ratios),
        "norm": config.norm_type,
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "dilation_base": config.dilation_growth_rate,
        "causal": config.use_causal_conv,
        "pad_mode": config.pad_mode,
        "true_skip": not config.use_conv_shortcut,
        "compress": config.compress,
        "lstm": config.num_lstm_layers,
    }
    with warnings.catch_warnings():
        # The package still uses the weight norm that torch has since deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        encoder = SEANetEncoder(**common)
        decoder = SEANetDecoder(**common, trim_right_ratio=config.trim_right_ratio)
    quantizer = ResidualVectorQuantizer(
        dimension=config.hidden_size, n_q=config.num_quantizers, bins=config.codebook_size
    )
    return encodec.EncodecModel(
        encoder,
        decoder,
        quantizer,
        list(config.target_bandwidths),
        config.sampling_rate,
        config.audio_channels,
        normalize=config.normalize,
        segment=config.chunk_length_s,
        overlap=config.overlap or 0.0,
        name=name,
    ).eval()


def upstream_twin(model: EncodecModel, name: str = "unset") -> encodec.EncodecModel:
    """The ``encodec.EncodecModel`` with the same weights.

    ``name`` is the model's name in its ``.ecdc`` files, "encodec_24khz" or "encodec_48khz". Both
    packages register their tensors in the same order, so no table of names is needed.
    """
    twin = upstream_model(model.config, name)
    for part in ("encoder", "decoder", "quantizer"):
        theirs = getattr(twin, part)
        ours = getattr(model, part).state_dict().values()
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours, strict=True)))
    return twin
