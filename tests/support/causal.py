"""Causal configurations of every kind, for tests that run a model outside torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.streaming.codec import Codec
from tests.support.models import speech

GOLDEN = "c50a22e4fa773ed6d8ecf0e829a11b42b405b8d6bbbfd51feefe22bdcf40416c"
"""SHA-256 of what the WebAssembly codec decodes from fixed codes with the embedded model."""

# Every field of a causal configuration that a step depends on differs from its default at least
# once, in sizes that are not multiples of a SIMD vector.
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "constant": {"pad_mode": "constant"},
    "replicate": {"pad_mode": "replicate"},
    "stereo": {"audio_channels": 2},
    "odd sizes": {"num_filters": 3, "hidden_size": 5, "compress": 3, "codebook_size": 2},
    "one filter": {"num_filters": 1, "compress": 1, "hidden_size": 1, "codebook_size": 4},
    "dilated": {"num_residual_layers": 3, "dilation_growth_rate": 3},
    "no residual layers": {"num_residual_layers": 0},
    "identity shortcut": {"use_conv_shortcut": False, "num_residual_layers": 2},
    "kernels": {"kernel_size": 4, "last_kernel_size": 9, "residual_kernel_size": 2},
    "kernels of one": {"kernel_size": 1, "last_kernel_size": 1, "residual_kernel_size": 1},
    "deep recurrence": {"num_lstm_layers": 4},
    "stride of one": {"upsampling_ratios": (1, 3, 1)},
    "strides": {"upsampling_ratios": (5, 2, 3), "audio_channels": 2},
    "trimmed left": {"trim_right_ratio": 0.0},
    "trimmed both": {"trim_right_ratio": 0.4, "upsampling_ratios": (3, 5), "pad_mode": "reflect"},
    "many books": {"books": (1, 5, 9)},
}


def audio_of(codec: Codec, samples: int) -> NDArray[np.float32]:
    channels = codec.config.audio_channels
    audio: NDArray[np.float32] = speech(channels, samples).numpy()
    return audio[0] if channels == 1 else audio
