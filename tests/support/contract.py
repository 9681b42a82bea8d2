"""The contract of every backend: a stream gives the offline model's results, frame by frame."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Audio, Codes
from tests.support.models import snr_db
from tests.support.tolerances import bound

if TYPE_CHECKING:
    from transformers import EncodecModel as HfModel

AUDIO_DB = -20 * math.log10(bound("stream audio", "float32"))

EXCUSED_SHARE = 1e-3
"""The share of frames that may differ from the offline codes because of near-ties."""


@dataclass(frozen=True)
class Streamed:
    """The output of a pair of streams: codes [frames, Q] and audio [channels, n]."""

    codes: Codes
    audio: Audio


def pieces(length: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Slices that cover ``length`` samples, with ``sizes`` used cyclically."""
    start = index = 0
    while start < length:
        size = sizes[index % len(sizes)]
        yield slice(start, start + size)
        start, index = start + size, index + 1


def stream(codec: Codec, audio: Tensor, sizes: Sequence[int], start: Start) -> Streamed:
    """Push [channels, n] through an encoder and a decoder, in pieces of ``sizes``."""
    bandwidth = codec.config.target_bandwidths[-1]
    encoder = codec.stream_encoder(bandwidth, start=start)
    decoder = codec.stream_decoder(bandwidth, start=start)
    samples = audio[0] if len(audio) == 1 else audio
    codes, decoded = [], []
    for piece in pieces(audio.shape[1], sizes):
        codes.append(encoder.push(samples[..., piece]))
        decoded.append(decoder.push(codes[-1]))
    codes.append(encoder.flush())
    decoded += [decoder.push(codes[-1]), decoder.flush()]
    assert encoder.samples_in == audio.shape[1]
    joined = np.concatenate(decoded, axis=-1)
    return Streamed(np.concatenate(codes), joined[None] if joined.ndim == 1 else joined)


def offline_codes(model: EncodecModel | HfModel, audio: Tensor) -> Codes:
    """The offline model's codes [frames, Q] of [channels, n] at the highest bandwidth."""
    with torch.inference_mode():
        stacked = model.encode(audio[None], bandwidth=model.config.target_bandwidths[-1])[0]
    codes: NDArray[np.uint16] = stacked[0, 0].t().numpy().astype(np.uint16)
    return codes


def offline_audio(model: EncodecModel, codes: Codes) -> Audio:
    """The offline model's audio [channels, n] of codes [frames, Q]."""
    with torch.inference_mode():
        stacked = torch.from_numpy(codes.T.astype(np.int64))[None, None]
        audio: Audio = model.decode(stacked, [None])[0][0].numpy()
    return audio


def assert_codes_agree(model: EncodecModel, audio: Tensor, given: Codes, wanted: Codes) -> int:
    """Check codes [frames, Q] of audio [channels, n] against the offline ones.

    Every code must be the best on its own frame's path, in float64, and a frame may depart from
    ``wanted`` only at a near-tie. Returns the number of frames that did.
    """
    assert given.shape == wanted.shape
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()
        residual = exact.encoder(audio[None].double())[0].t()
    chosen_all = torch.from_numpy(given.astype(np.int64))
    tied = torch.zeros(len(given), dtype=torch.bool)
    for stage, layer in enumerate(exact.quantizer.stages[: given.shape[1]]):
        book = layer.codebook.embed
        distance = torch.cdist(residual, book).pow(2)
        best = distance.min(-1).values
        chosen = distance.gather(1, chosen_all[:, stage : stage + 1])[:, 0]
        excess = ((chosen - best) / residual.pow(2).sum(-1)).max()
        assert excess <= bound("own path", "float32"), f"stage {stage}: {float(excess):.2e}"
        differs = torch.from_numpy(given[:, stage] != wanted[:, stage])
        second = distance.topk(2, largest=False).values[:, 1]
        gap = (second - best) / residual.pow(2).sum(-1)
        apart = differs & ~tied & (gap > bound("own path", "float32"))
        assert not apart.any(), f"stage {stage}: frames {apart.nonzero()[:, 0].tolist()} differ"
        tied |= differs
        residual = residual - book[chosen_all[:, stage]]
    excused = int(tied.sum())
    assert excused <= max(1, EXCUSED_SHARE * len(given)), f"{excused} of {len(given)} near-ties"
    if excused:
        print(f"{excused} of {len(given)} frames excused as near-ties")
    return excused


def assert_stream_is_offline(
    codec: Codec, audio: Tensor, sizes: list[int], start: Start = "exact"
) -> None:
    """Assert that a stream's codes and audio are those of the offline model."""
    silent = codec.packed.prime_frames if start == "primed" else 0
    hop, model = codec.config.hop_length, codec.model
    before = torch.zeros(len(audio), silent * hop)
    whole = torch.cat([before, audio], dim=1)
    wanted = offline_codes(model, whole)
    streamed = stream(codec, audio, sizes, start)
    codes = np.concatenate([wanted[:silent], streamed.codes])
    assert_codes_agree(model, whole, codes, wanted)
    decoded = offline_audio(model, codes)[:, silent * hop :]
    assert streamed.audio.shape == decoded.shape
    assert snr_db(decoded, streamed.audio) >= AUDIO_DB


def engine_of(codec: Codec, slots: int, start: Start = "primed") -> Engine:
    return codec.engine(slots, codec.config.target_bandwidths[-1], start=start)


def ticks(engine: Engine, audio: Tensor, active: list[list[bool]]) -> tuple[Tensor, Tensor]:
    """Codes [ticks, S, Q] and audio [ticks, S, hop] of [S, n] audio, one frame per tick."""
    codes, heard = [], []
    frames: tuple[Tensor, ...] = torch.split(audio, engine.model.config.hop_length, dim=1)
    for frame, mask in zip(frames, active, strict=True):
        codes.append(engine.encode(frame.contiguous(), torch.tensor(mask)).clone())
        heard.append(engine.decode(codes[-1], torch.tensor(mask)).clone())
    return torch.stack(codes), torch.stack(heard)
