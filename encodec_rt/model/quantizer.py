"""Residual vector quantisation with Euclidean codebooks (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from encodec_rt.config import EncodecConfig
from encodec_rt.model.numerics import FLOAT32_ON_CPU


class EncodecEuclideanCodebook(nn.Module):
    """One codebook; its buffers also hold the moving averages that training updates."""

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(self, config: EncodecConfig) -> None:
        """Build a codebook of ``codebook_size`` zero vectors of ``hidden_size`` numbers."""
        super().__init__()
        embed = torch.zeros(config.codebook_size, config.hidden_size, **FLOAT32_ON_CPU)
        self.register_buffer("inited", torch.ones(1, **FLOAT32_ON_CPU))
        self.register_buffer("cluster_size", embed.new_zeros(config.codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", torch.zeros_like(embed))

    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [...] int64, the nearest vector's index; the lowest index wins a tie.

        The distance is computed as upstream does, so that rounding agrees too.
        """
        rows = x.reshape(-1, x.shape[-1])
        book = self.embed.t()
        distance = (
            rows.pow(2).sum(1, keepdim=True) - 2 * rows @ book + book.pow(2).sum(0, keepdim=True)
        )
        return (-distance).max(dim=-1).indices.view(x.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """[...] int64 -> [..., D]."""
        return embedding(codes, self.embed)


class EncodecVectorQuantization(nn.Module):
    """A codebook behind a [B, D, T] interface."""

    def __init__(self, config: EncodecConfig) -> None:
        """Build one codebook."""
        super().__init__()
        self.codebook = EncodecEuclideanCodebook(config)

    def encode(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, T] int64."""
        return self.codebook.encode(x.permute(0, 2, 1))

    def decode(self, codes: Tensor) -> Tensor:
        """[B, T] int64 -> [B, D, T]."""
        return self.codebook.decode(codes).permute(0, 2, 1)


class EncodecResidualVectorQuantizer(nn.Module):
    """A cascade of codebooks, each of which quantises the residual of the ones before."""

    def __init__(self, config: EncodecConfig) -> None:
        """Build ``config.num_quantizers`` codebooks."""
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.frame_rate = config.frame_rate
        self.num_quantizers = config.num_quantizers
        self.layers = nn.ModuleList(
            EncodecVectorQuantization(config) for _ in range(config.num_quantizers)
        )

    @property
    def stages(self) -> list[EncodecVectorQuantization]:
        """The cascade, in order."""
        return [layer for layer in self.layers if isinstance(layer, EncodecVectorQuantization)]

    def get_num_quantizers_for_bandwidth(self, bandwidth: float | None = None) -> int:
        """Codebooks for a bandwidth in kbps; None or 0 means all of them."""
        if not bandwidth:
            return self.config.num_quantizers
        return self.config.codebooks_for(bandwidth)

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """[B, D, T] -> codes [Q, B, T] int64."""
        residual = embeddings
        codes = []
        for layer in self.stages[: self.get_num_quantizers_for_bandwidth(bandwidth)]:
            indices = layer.encode(residual)
            residual = residual - layer.decode(indices)
            codes.append(indices)
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [Q, B, T] -> [B, D, T], summed in the order of the codebooks."""
        # Starting from zero, as upstream does, since -0.0 would stay -0.0.
        quantized = self.stages[0].codebook.embed.new_zeros(())
        for layer, indices in zip(self.stages, codes, strict=False):
            quantized = quantized + layer.decode(indices)
        return quantized
