"""The recurrent layer between the convolutions and the latent space."""

from __future__ import annotations

from torch import Tensor, nn

from encodec_rt.config import EncodecConfig
from encodec_rt.model.numerics import FLOAT32_ON_CPU


class EncodecLSTM(nn.Module):
    """A stack of LSTM layers over time, added to its input (``encodec/modules/lstm.py``)."""

    def __init__(self, config: EncodecConfig, dimension: int) -> None:
        """Build ``config.num_lstm_layers`` layers of ``dimension`` units."""
        super().__init__()
        self.lstm = nn.LSTM(dimension, dimension, config.num_lstm_layers, **FLOAT32_ON_CPU)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T], from a zero state."""
        steps = x.permute(2, 0, 1)
        y: Tensor = self.lstm(steps)[0] + steps
        return y.permute(1, 2, 0)
