"""What a language model of the codes saves, and what it costs.

    python -m benches.lm [--codes RUN/codes-...-held-out.npz] [--lm FILE] [--seconds 60]

The codes are those that ``encodec-rt train lm`` held out, or those of the two bundled clips, which
no model was trained on. They are coded in whole packets, frame by frame as ``live --save`` does,
with a packet per frame, and in independent packets as a call over a lossy network would need. The
first and the third are checked by decoding. Beside them: packed codes, code tables, xz and zstd of
the packed codes, and the original package's network with random weights, for its speed only. Then
clips go from audio to ``.encodec`` and back, codec included.
"""

from __future__ import annotations

import argparse
import io
import lzma
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benches.bundled import bundled
from benches.lm_packets import lossy_packets
from benches.record import RESULTS, Record
from encodec_rt.bitstream.coding import CodeCoder, RawCoder, TableCoder, tables_for_model
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_writer import LIVE_PAGE_S, ContainerWriter
from encodec_rt.bitstream.packet import pack_codes
from encodec_rt.container_audio import ContainerAudio, header_for
from encodec_rt.errors import WeightsError
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.files import lm_for_model
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.paper import PaperLm
from encodec_rt.streaming.codec import Codec
from encodec_rt.training.language_model import bits_per_code
from encodec_rt.transcode import bandwidth_for, encode_blocks
from encodec_rt.types import Audio, Codes

FRAME_RATE = 75
RESTARTS_S = (1, 2, 4, 8)
CLIPS = ("speech_en", "speech_it")
WARM_FRAMES = 10
PAPER_FRAMES = 200


def kbps(size: int, frames: int) -> float:
    """The bitrate of ``size`` bytes for ``frames`` frames."""
    return 8e-3 * size * FRAME_RATE / frames


def whole_packets(
    make: Callable[[], CodeCoder], codes: Codes, layers: Sequence[int], restart_s: int
) -> tuple[list[float], float, float]:
    """The kbps up to each layer, and how many times faster than real time each direction is."""
    encoder, decoder = make(), make()
    sizes = np.zeros(len(layers))
    spent = [0.0, 0.0]
    for second, start in enumerate(range(0, len(codes), FRAME_RATE)):
        part, restart = codes[start : start + FRAME_RATE], second % restart_s == 0
        began = time.process_time()
        payloads = encoder.encode(part, layers, restart=restart)
        spent[0] += time.process_time() - began
        sizes += [len(payload.data) for payload in payloads]
        began = time.process_time()
        found = decoder.decode(payloads, layers, len(part), restart=restart)
        spent[1] += time.process_time() - began
        require_same(found, part)
    seconds = len(codes) / FRAME_RATE
    rates = [kbps(int(size), len(codes)) for size in np.cumsum(sizes)]
    return rates, seconds / max(spent[0], 1e-9), seconds / max(spent[1], 1e-9)


def require_same(found: Codes, given: Codes) -> None:
    """End the bench if decoded codes differ from the given ones."""
    if not np.array_equal(found, given):
        raise SystemExit("decoded codes differ from those that were coded; nothing is recorded")


def a_packet_per_frame(
    make: Callable[[], CodeCoder], codes: Codes, layers: Sequence[int]
) -> tuple[dict[str, list[float]], float]:
    """Times in ms of a frame in each direction, and the kbps with a packet per frame."""
    encoder, decoder = make(), make()
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    size = 0
    for index in range(len(codes)):
        part = codes[index : index + 1]
        began = time.perf_counter()
        payloads = encoder.encode(part, layers, restart=index == 0)
        encoded = time.perf_counter()
        found = decoder.decode(payloads, layers, 1, restart=index == 0)
        times["decode"].append(1e3 * (time.perf_counter() - encoded))
        times["encode"].append(1e3 * (encoded - began))
        size += sum(len(payload.data) for payload in payloads)
        require_same(found, part)
    return {name: ms[WARM_FRAMES:] for name, ms in times.items()}, kbps(size, len(codes))


def recorded(coder: CodeCoder, header: StreamHeader, codes: Codes) -> tuple[list[float], float]:
    """Times in ms that ``live --save`` takes per frame, and the file's kbps with all headers."""
    file, times = io.BytesIO(), []
    writer = ContainerWriter(file, header, coder, page_s=LIVE_PAGE_S)
    for index in range(len(codes)):
        began = time.perf_counter()
        writer.write(codes[index : index + 1])
        times.append(1e3 * (time.perf_counter() - began))
    size = writer.finish(len(codes) * header.hop)
    return times[WARM_FRAMES:], kbps(size, len(codes))


def clips_both_ways(
    codec: Codec, make: Callable[[], CodeCoder], bandwidth: float, lm: Path | None
) -> dict[str, Any]:
    """How many times faster than real time clips become an ``.encodec`` stream and audio again."""
    spent, seconds, size = [0.0, 0.0], 0.0, 0
    for audio in both_clips(codec):
        seconds += audio.shape[1] / codec.config.sampling_rate
        began = time.process_time()
        file = io.BytesIO()
        header = header_for(codec, codec.config.codebooks_for(bandwidth), start="exact")
        writer = ContainerWriter(file, header, make())
        for block in encode_blocks(codec, [audio], bandwidth_kbps=bandwidth, start="exact"):
            writer.write(block.codes, block.scale)
        size += writer.finish(audio.shape[1])
        spent[0] += time.process_time() - began
        file.seek(0)
        began = time.process_time()
        decoded = sum(pcm.shape[1] for pcm in ContainerAudio(codec, file, lm=lm))
        spent[1] += time.process_time() - began
        assert decoded == audio.shape[1]
    return {
        "encode_x_real_time": seconds / spent[0],
        "decode_x_real_time": seconds / spent[1],
        "file_kbps": 8e-3 * size / seconds,
    }


def both_clips(codec: Codec) -> list[Audio]:
    """The two bundled clips, each [channels, n]."""
    config = codec.config
    return [bundled(name, config.sampling_rate, config.audio_channels) for name in CLIPS]


def memory(model: IntegerLm, codes: Codes, layers: Sequence[int]) -> dict[str, Any]:
    """Bytes of the weights in the file, and MiB that the model and coding both ways take."""
    tracemalloc.start()
    one = IntegerLm(model.tensors, model.config)
    loaded = tracemalloc.get_traced_memory()[0]
    coder, decoder = LmCoder(one), LmCoder(one)
    payloads = coder.encode(codes[:FRAME_RATE], layers, restart=True)
    decoder.decode(payloads, layers, FRAME_RATE, restart=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "lm_sha256": model.sha256.hex(),
        "tensors_bytes": sum(tensor.nbytes for tensor in model.tensors.values()),
        "loaded_mib": loaded / 2**20,
        "peak_mib": peak / 2**20,
    }


def paper_frames(books: int, frames: int) -> list[float]:
    """Times in ms of a frame of the original's network at full size, with random weights."""
    torch.manual_seed(0)
    model = PaperLm(books=32, size=1024, dim=200, hidden=800, layers=5, past_frames=262).eval()
    last, past, times = torch.ones(1, books, 1, dtype=torch.long), None, []
    for frame in range(frames):
        began = time.perf_counter()
        _, past = model.step(last, past, frame)
        times.append(1e3 * (time.perf_counter() - began))
    return times[frames // 2 :]


def measure(
    record: Record, codec: Codec, model: IntegerLm, codes: Codes, *, lm: Path | None = None
) -> None:
    """Add all cases to ``record``."""
    layers, size = model.config.layers, model.config.codebook_size
    ends, bits = np.cumsum(layers), (size - 1).bit_length()
    found = tables_for_model(model.codes_sha256)
    coders: dict[str, Callable[[], CodeCoder]] = {"packed": lambda: RawCoder(size)}
    if found is not None:
        tables = found
        coders["tables"] = lambda: TableCoder(tables)
    for name, make in coders.items():
        rates, encode, decode = whole_packets(make, codes, layers, 1)
        record.add(
            {"coding": name},
            values={"kbps": rates, "encode_x_real_time": encode, "decode_x_real_time": decode},
        )
    packed = [pack_codes(codes[:, :end], bits) for end in ends]
    rivals: dict[str, Callable[[bytes], bytes]] = {
        "xz -9e of packed codes": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "zstd -22 of packed codes": zstandard.ZstdCompressor(level=22).compress,
    }
    for name, compress in rivals.items():
        rates = [kbps(len(compress(data)), len(codes)) for data in packed]
        record.add({"coding": name}, values={"kbps": rates})
    for restart_s in RESTARTS_S:
        rates, encode, decode = whole_packets(lambda: LmCoder(model), codes, layers, restart_s)
        # Also by name, for the index.
        each_rate = {
            f"kbps of {end} codebooks": rate for end, rate in zip(ends, rates, strict=True)
        }
        record.add(
            {"coding": "language model", "restart_s": restart_s},
            values={
                "kbps": rates,
                **each_rate,
                "encode_x_real_time": encode,
                "decode_x_real_time": decode,
            },
        )
    each = bits_per_code(model, [codes], RESTARTS_S[-1] * FRAME_RATE)
    record.add({"bits of": "language model"}, values={"per_codebook": np.round(each, 4).tolist()})
    record.add({"memory of": "language model"}, values=memory(model, codes, layers))
    live = codes[: 20 * FRAME_RATE]
    for depth in range(1, len(layers) + 1):
        own = layers[:depth]
        part, rate = live[:, : sum(own)], bandwidth_for(codec.config, sum(own))
        times, flushed = a_packet_per_frame(lambda: LmCoder(model), part, own)
        record.add(
            {"coding": "language model, a packet per frame", "at": rate},
            times,
            values={"kbps": flushed, "kbps_packed": 8e-3 * FRAME_RATE * -(-sum(own) * bits // 8)},
            deadline_ms=1000 / FRAME_RATE,
        )
        narrow = header_for(codec, sum(own), start="primed")
        ms, rate_kbps = recorded(LmCoder(model), narrow, part)
        record.add(
            {"live --save": "language model", "at": rate},
            {"frame": ms},
            values={"file_kbps": rate_kbps},
            deadline_ms=1000 / FRAME_RATE,
        )
        values = clips_both_ways(codec, lambda: LmCoder(model), rate, lm)
        record.add({"files": "codec and language model", "at": rate}, values=values)
    lossy_packets(record, model, None if found is None else found.counts, codes)
    record.add(
        {"network": "the original's, random weights"},
        {"step": paper_frames(sum(layers), PAPER_FRAMES)},
    )


def main() -> None:
    """Run the bench and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", type=Path, help="default: the default model's own")
    parser.add_argument("--codes", type=Path, help="default: those of the bundled clips")
    parser.add_argument("--seconds", type=int, default=60, help="of codes to use")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("lm", folder=options.out)
    codec = Codec.load("default")
    own = lm_for_model(bytes.fromhex(codec.codes_sha256))
    model = own if options.lm is None else IntegerLm.load(options.lm)
    if model is None:
        raise WeightsError("the default model has no language model; name one with --lm")
    if options.codes is None:
        kbps_of_all = codec.config.target_bandwidths[-1]
        clips = [codec.encode(audio, kbps_of_all) for audio in both_clips(codec)]
        codes: Codes = np.concatenate(clips)
    else:
        with np.load(options.codes, allow_pickle=False) as held:
            codes = held["codes"]
    codes = codes[: options.seconds * FRAME_RATE, : sum(model.config.layers)]
    source = "the bundled clips" if options.codes is None else "held-out speech"
    record.add({"codes of": source}, values={"seconds": len(codes) / FRAME_RATE})
    measure(record, codec, model, codes, lm=options.lm)
    print(record.table())
    print(record.write())


if __name__ == "__main__":
    main()
