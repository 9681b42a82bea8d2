"""The effects of rounding and of the start policy, with trained weights.

    python -m benches.numerics [--model default]

Near-ties between stream and offline model, how long the three start policies differ, and what
reduced precision in the decoder costs. No times are measured.
"""

from __future__ import annotations

import argparse
import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from benches.emulation import nearest
from benches.record import Record
from benches.stream import speech
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Codes
from tests.support.models import snr_db

STARTS: tuple[Start, ...] = ("exact", "primed", "zero")
FRAMES_SHOWN = (0, 1, 2, 4, 8, 16, 32, 64)


def offline_codes(model: EncodecModel, audio: Tensor) -> Codes:
    """Codes [frames, Q] of audio [channels, n] at the highest bandwidth."""
    with torch.inference_mode():
        latents = model.encoder(audio[None])
        codes = model.quantizer.encode(latents, model.config.target_bandwidths[-1])[:, 0]
    return codes.t().numpy().astype(np.uint16)


def streamed(codec: Codec, audio: Tensor, start: Start) -> tuple[Codes, np.ndarray]:
    """Codes [frames, Q] and decoded audio [channels, n] of a stream, after a flush."""
    bandwidth = codec.config.target_bandwidths[-1]
    encoder = codec.stream_encoder(bandwidth, start=start)
    decoder = codec.stream_decoder(bandwidth, start=start)
    codes = np.concatenate([encoder.push(audio), encoder.flush()])
    return codes, np.concatenate([decoder.push(codes), decoder.flush()], axis=-1)


def smallest_gap(model: EncodecModel, audio: Tensor) -> float:
    """The smallest gap between the two nearest squared distances, over |residual|^2, in float64."""
    exact = copy.deepcopy(model).double()
    smallest = math.inf
    with torch.inference_mode():
        residual = exact.encoder(audio[None].double())[0].t()
        for stage in exact.quantizer.stages:
            book = stage.codebook.embed
            near = torch.cdist(residual, book).square().topk(2, largest=False)
            gaps = (near.values[:, 1] - near.values[:, 0]) / residual.square().sum(1)
            smallest = min(smallest, float(gaps.min()))
            residual = residual - book[near.indices[:, 0]]
    return smallest


def decoder_snr_db(model: EncodecModel, codes: Codes) -> dict[str, float]:
    """The SNR, relative to float32, of decoding in bfloat16 and with convolutions in TF32."""
    with torch.inference_mode():
        latents = model.quantizer.decode(torch.from_numpy(codes.T.astype(np.int64))[:, None])
        wanted = model.decoder(latents).numpy()
        narrow = copy.deepcopy(model.decoder).bfloat16()
        bfloat16 = narrow(latents.bfloat16()).float().numpy()
        rounded = copy.deepcopy(model.decoder)
        for part in rounded.modules():
            if isinstance(part, (nn.Conv1d, nn.ConvTranspose1d)):
                nn.utils.parametrize.remove_parametrizations(part, "weight")
                part.weight.copy_(nearest(part.weight))
                part.register_forward_pre_hook(lambda _, given: (nearest(given[0]),))
        tf32 = rounded(latents).numpy()
    return {
        "decoder_bfloat16_snr_db": snr_db(wanted, bfloat16),
        "decoder_tf32_convolutions_snr_db": snr_db(wanted, tf32),
    }


def main() -> None:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="default")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec.load(options.model, backend=options.backend)
    model, hop = codec.model, codec.config.hop_length
    audio = torch.from_numpy(speech(codec, options.seconds))
    wanted = offline_codes(model, audio)
    runs = {start: streamed(codec, audio, start) for start in STARTS}
    flipped = runs["exact"][0] != wanted
    record = Record("numerics", device="cpu")
    values: dict[str, str | int | float | bool | None] = {
        "frames": len(wanted),
        "codes_that_differ": int(flipped.sum()),
        "frames_that_differ": int(flipped.any(1).sum()),
        "smallest_relative_gap": smallest_gap(model, audio),
        **decoder_snr_db(model, wanted),
    }
    reference = runs["exact"]
    for start in ("primed", "zero"):
        codes, heard = runs[start]
        for frame in FRAMES_SHOWN:
            part = slice(frame * hop, (frame + 1) * hop)
            share = float((codes[frame] != reference[0][frame]).mean())
            values[f"{start}_codes_that_differ_in_frame_{frame}"] = share
            values[f"{start}_snr_db_in_frame_{frame}"] = min(
                999.0, snr_db(reference[1][..., part], heard[..., part])
            )
    case = {"model": codec.name, "backend": codec.ops.name, "codebooks": wanted.shape[1]}
    record.add(case, {}, values=values)
    for name, value in values.items():
        print(f"{name:45} {value:.4g}" if isinstance(value, float) else f"{name:45} {value}")
    print(record.write().name)


if __name__ == "__main__":
    main()
