"""EncodecModel: the offline codec, with the interface of ``transformers.EncodecModel``.

It is the model that is trained, and the reference for the streaming engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from encodec_rt.arrays import LOUDEST, UNUSABLE
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.model.numerics import require_tensors, without_autocast
from encodec_rt.model.outputs import (
    EncodecDecoderOutput,
    EncodecEncoderOutput,
    EncodecOutput,
    Scales,
)
from encodec_rt.model.pretrained_model import PretrainedModel
from encodec_rt.model.quantizer import EncodecResidualVectorQuantizer
from encodec_rt.model.seanet import EncodecDecoder, EncodecEncoder


class EncodecModel(PretrainedModel):
    """The EnCodec model, with the parameter names of ``transformers.EncodecModel``.

    It computes in the type of its weights, whatever autocast or default dtype a program has set.
    """

    def __init__(self, config: EncodecConfig) -> None:
        """Build the model in float32 on the CPU, with random weights and zero codebooks."""
        super().__init__(config)
        self.encoder = EncodecEncoder(config)
        self.decoder = EncodecDecoder(config)
        self.quantizer = EncodecResidualVectorQuantizer(config)
        self.bits_per_codebook = config.codebook_nbits

    @overload
    def encode(
        self,
        /,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: Literal[True] | None = None,
    ) -> EncodecEncoderOutput: ...

    @overload
    def encode(
        self,
        /,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        *,
        return_dict: Literal[False],
    ) -> tuple[Tensor, Scales, int]: ...

    @without_autocast
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> EncodecEncoderOutput | tuple[Tensor, Scales, int]:
        """Codes of audio [B, audio_channels, L].

        ``padding_mask`` [B, L] or [B, audio_channels, L] is 0 where the batch was padded;
        ``bandwidth`` in kbps is one of ``config.target_bandwidths``, by default the first. A model
        with chunks encodes each one separately. Raises InputError and ConfigError.
        """
        config = self.config
        if bandwidth is None:
            bandwidth = config.target_bandwidths[0]
        config.codebooks_for(bandwidth)
        masked = self._masked_input(input_values, padding_mask)
        length = masked.shape[-1]
        stride = config.chunk_stride or length
        chunks = [
            self._encode_chunk(
                masked[..., start : start + (config.chunk_length or length)], bandwidth
            )
            for start in range(0, length, stride)
        ]
        frames = [codes.shape[-1] for codes, _ in chunks]
        if any(count != frames[0] for count in frames[:-1]):
            raise InputError(
                f"{length} samples end inside the overlap of two chunks, which cannot be stacked; "
                "pad the audio with EncodecFeatureExtractor, or encode it as a stream"
            )
        pad_length = frames[0] - frames[-1]
        last = torch.nn.functional.pad(chunks[-1][0], (0, pad_length))
        audio_codes = torch.stack([codes for codes, _ in chunks[:-1]] + [last])
        scales = [scale for _, scale in chunks]
        if return_dict is False:
            return audio_codes, scales, pad_length
        return EncodecEncoderOutput(audio_codes, scales, pad_length)

    @overload
    def decode(
        self,
        /,
        audio_codes: Tensor,
        audio_scales: Scales | None,
        padding_mask: Tensor | None = None,
        return_dict: Literal[True] | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> EncodecDecoderOutput: ...

    @overload
    def decode(
        self,
        /,
        audio_codes: Tensor,
        audio_scales: Scales | None,
        padding_mask: Tensor | None = None,
        *,
        return_dict: Literal[False],
        last_frame_pad_length: int | None = 0,
    ) -> tuple[Tensor]: ...

    @without_autocast
    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Scales | None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> EncodecDecoderOutput | tuple[Tensor]:
        """Audio of codes [chunks, B, Q, T] and their scales, as ``encode`` gives them.

        The result is cut to the length of ``padding_mask`` if one is given. Raises InputError.
        """
        config = self.config
        require_tensors(padding_mask, audio_codes=audio_codes)
        chunks = list(self._checked_codes(audio_codes))
        if audio_scales is None and config.normalize:
            raise InputError("this model normalises its input: pass the audio_scales of encode")
        scales = [None] * len(chunks) if audio_scales is None else list(audio_scales)
        if len(scales) != len(chunks):
            raise InputError(f"{len(chunks)} chunks of codes but {len(scales)} scales")
        if config.chunk_length is None and len(chunks) != 1:
            raise InputError(f"{len(chunks)} chunks of codes; a model without chunks has one")
        if last_frame_pad_length:
            if not 0 < last_frame_pad_length < chunks[-1].shape[-1]:
                raise InputError(
                    f"last_frame_pad_length={last_frame_pad_length} of {chunks[-1].shape[-1]} "
                    "frames; pass what encode gave"
                )
            chunks[-1] = chunks[-1][..., :-last_frame_pad_length]
        decoded = [
            self._decode_chunk(codes, scale) for codes, scale in zip(chunks, scales, strict=True)
        ]
        audio = decoded[0]
        if config.chunk_length is not None:
            audio = overlap_add(decoded, config.chunk_stride or 1)
        if padding_mask is not None:
            audio = audio[..., : padding_mask.shape[-1]]
        return (audio,) if return_dict is False else EncodecDecoderOutput(audio)

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        audio_codes: Tensor | None = None,
        audio_scales: Scales | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> EncodecOutput | tuple[Tensor, Tensor]:
        """Encode and decode audio [B, audio_channels, L], or only decode given codes."""
        if (audio_codes is None) != (audio_scales is None):
            raise InputError("audio_codes and audio_scales go together: pass both or neither")
        require_tensors(padding_mask, input_values=input_values)
        if padding_mask is None:
            padding_mask = torch.ones_like(input_values, dtype=torch.bool)
        if audio_codes is None:
            audio_codes, audio_scales, last_frame_pad_length = self.encode(
                input_values, padding_mask, bandwidth, return_dict=False
            )
        (audio,) = self.decode(
            audio_codes,
            audio_scales,
            padding_mask,
            return_dict=False,
            last_frame_pad_length=last_frame_pad_length,
        )
        if return_dict is False:
            return audio_codes, audio
        return EncodecOutput(audio_codes, audio)

    def _masked_input(self, input_values: Tensor, padding_mask: Tensor | None) -> Tensor:
        require_tensors(padding_mask, input_values=input_values)
        channels = self.config.audio_channels
        shape = tuple(input_values.shape)
        if len(shape) != 3 or shape[1] != channels or 0 in shape:
            raise InputError(
                f"audio of shape {shape}; this model takes [batch, {channels}, length]"
            )
        if input_values.dtype != self.dtype:
            raise InputError(
                f"audio of type {input_values.dtype}; this model takes the type of its weights, "
                f"{self.dtype}, from -1 to 1"
            )
        if not bool((input_values.abs() <= LOUDEST).all()):
            raise InputError(f"the audio holds {UNUSABLE}")
        if padding_mask is None:
            return input_values
        if tuple(padding_mask.shape) not in {
            (shape[0], shape[2]),
            (shape[0], 1, shape[2]),
            shape,
        }:
            raise InputError(
                f"padding_mask of shape {tuple(padding_mask.shape)} for audio of shape {shape}; "
                "it is [batch, length] or the audio's own shape"
            )
        return padding_mask.view(shape[0], -1, shape[2]).bool() * input_values

    def _checked_codes(self, audio_codes: Tensor) -> Tensor:
        config = self.config
        shape = tuple(audio_codes.shape)
        fits = len(shape) == 4 and min(shape) > 0 and shape[2] <= config.num_quantizers
        if not fits or audio_codes.is_floating_point():
            raise InputError(
                f"codes of shape {shape} and type {audio_codes.dtype}; this model takes whole "
                f"numbers [chunks, batch, 1 to {config.num_quantizers} codebooks, frames]"
            )
        codes = audio_codes.long()
        lowest, highest = int(codes.min()), int(codes.max())
        if lowest < 0 or highest >= config.codebook_size:
            raise InputError(
                f"codes from {lowest} to {highest}; a codebook has 0 to {config.codebook_size - 1}"
            )
        return codes

    def _encode_chunk(self, audio: Tensor, bandwidth: float) -> tuple[Tensor, Tensor | None]:
        scale = None
        if self.config.normalize:
            scale = loudness(audio)
            if audio.element_size() < 4 and not bool((scale > 0).all()):
                raise InputError(
                    f"the loudness of this audio is zero in {audio.dtype}, and audio is divided by "
                    "it; use model.float() for silent or very quiet audio"
                )
            audio = audio / scale
            scale = scale.view(-1, 1)
        codes = self.quantizer.encode(self.encoder(audio), bandwidth)
        return codes.transpose(0, 1), scale

    def _decode_chunk(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        audio: Tensor = self.decoder(self.quantizer.decode(codes.transpose(0, 1)))
        return audio if scale is None else audio * scale.view(-1, 1, 1)


def loudness(audio: Tensor) -> Tensor:
    """[B, C, L] -> [B, 1, 1], the root mean square of the channels' mean, never quite zero."""
    mono = audio.sum(1, keepdim=True) / audio.shape[1]
    return mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8


def triangle(length: int, *, like: Tensor) -> Tensor:
    """The weight [length] of each sample of a chunk in the overlap-add; it is never zero.

    Raises InputError if the type of ``like`` is too coarse: the first and the last sample of a
    chunk would have zero weight, and be divided by zero.
    """
    time = torch.linspace(0, 1, length + 2, device=like.device, dtype=like.dtype)[1:-1]
    weight = 0.5 - (time - 0.5).abs()
    if like.element_size() < 4 and not bool((weight > 0).all()):
        raise InputError(
            f"chunks of {length} samples cannot be overlapped in {like.dtype}, which rounds the "
            "weights at their ends to zero; use model.float()"
        )
    return weight


def overlap_add(chunks: Sequence[Tensor], stride: int) -> Tensor:
    """Chunks [..., n_i], ``stride`` apart, -> [..., the end of the one that ends last].

    Each sample is the mean of the chunks that cover it, weighted by a triangle over the first
    chunk's length (``encodec/utils.py``, ``_linear_overlap_add``).
    """
    first = chunks[0]
    total = max(index * stride + chunk.shape[-1] for index, chunk in enumerate(chunks))
    weight = triangle(first.shape[-1], like=first)
    summed = first.new_zeros(*first.shape[:-1], total)
    weights = first.new_zeros(total)
    for index, chunk in enumerate(chunks):
        part = slice(index * stride, index * stride + chunk.shape[-1])
        summed[..., part] += weight[: chunk.shape[-1]] * chunk
        weights[part] += weight[: chunk.shape[-1]]
    return summed / weights
