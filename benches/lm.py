"""What a language model of the codes saves, and what it costs.

    python -m benches.lm --lm FILE --codes RUN/codes-...-held-out.npz [--seconds 60]

Held-out codes as ``encodec-rt train lm`` keeps them, coded whole packets at a time and frame by
frame, with the bytes checked by decoding them; beside it packed codes, code tables, xz over the
packed codes, and the original package's class of random weights, for its speed alone.
"""

from __future__ import annotations

import argparse
import lzma
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benches.record import Record
from encodec_rt.bitstream.coding import CodeCoder, RawCoder, TableCoder, tables_for_model
from encodec_rt.bitstream.packet import pack_codes
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.paper import PaperLm
from encodec_rt.types import Codes

FRAME_RATE = 75
RESTARTS_S = (1, 2, 4, 8)


def kbps(size: int, frames: int) -> float:
    """Bytes of so many frames as a bit rate."""
    return 8e-3 * size * FRAME_RATE / frames


def whole_packets(
    encoder: CodeCoder,
    decoder: CodeCoder | None,
    codes: Codes,
    layers: Sequence[int],
    restart_s: int,
) -> tuple[list[float], float, float]:
    """Rates in kbps up to each layer, and how many times faster than real time each way is."""
    sizes = np.zeros(len(layers))
    spent = [0.0, 0.0]
    for second, start in enumerate(range(0, len(codes), FRAME_RATE)):
        part, restart = codes[start : start + FRAME_RATE], second % restart_s == 0
        began = time.process_time()
        payloads = encoder.encode(part, layers, restart=restart)
        spent[0] += time.process_time() - began
        sizes += [len(payload.data) for payload in payloads]
        if decoder is not None:
            began = time.process_time()
            found = decoder.decode(payloads, layers, len(part), restart=restart)
            spent[1] += time.process_time() - began
            if not np.array_equal(found, part):
                raise SystemExit("decoded codes differ; no figure is worth anything")
    seconds = len(codes) / FRAME_RATE
    rates = [kbps(int(size), len(codes)) for size in np.cumsum(sizes)]
    return rates, seconds / spent[0], seconds / spent[1] if spent[1] else 0.0


def frame_by_frame(
    model: IntegerLm, codes: Codes, layers: Sequence[int]
) -> tuple[Sequence[float], Sequence[float], float]:
    """Times of one frame each way in ms, and the rate of a packet per frame."""
    encoder, decoder = LmCoder(model), LmCoder(model)
    encode, decode, size = list[float](), list[float](), 0
    for index in range(len(codes)):
        part = codes[index : index + 1]
        began = time.perf_counter()
        payloads = encoder.encode(part, layers, restart=index == 0)
        encoded = time.perf_counter()
        found = decoder.decode(payloads, layers, 1, restart=index == 0)
        decode.append(1e3 * (time.perf_counter() - encoded))
        encode.append(1e3 * (encoded - began))
        size += sum(len(payload.data) for payload in payloads)
        if not np.array_equal(found, part):
            raise SystemExit("decoded codes differ; no figure is worth anything")
    return encode[10:], decode[10:], kbps(size, len(codes))


def paper_frames(books: int, frames: int) -> list[float]:
    """Times in ms of one frame of the original's network at its full size, random weights."""
    torch.manual_seed(0)
    model = PaperLm(books=32, size=1024, dim=200, hidden=800, layers=5, past_frames=262).eval()
    last, past, times = torch.ones(1, books, 1, dtype=torch.long), None, []
    for frame in range(frames):
        began = time.perf_counter()
        _, past = model.step(last, past, frame)
        times.append(1e3 * (time.perf_counter() - began))
    return times[frames // 2 :]


def main() -> None:
    """Run the bench and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = IntegerLm.load(options.lm)
    layers, size = model.config.layers, model.config.codebook_size
    books = sum(layers)
    with np.load(options.codes, allow_pickle=False) as held:
        codes = held["codes"][: options.seconds * FRAME_RATE, :books]
    record = Record("lm")
    coders: dict[str, CodeCoder] = {"packed": RawCoder(size)}
    tables = tables_for_model(model.codes_sha256)
    if tables is not None:
        coders["tables"] = TableCoder(tables)
    for name, coder in coders.items():
        rates, faster, _ = whole_packets(coder, None, codes, layers, 1)
        record.add({"coding": name}, values={"kbps": rates, "encode_x_real_time": faster})
    packed = [pack_codes(codes[:, :end], (size - 1).bit_length()) for end in np.cumsum(layers)]
    record.add(
        {"coding": "xz -9e of packed codes"},
        values={
            "kbps": [
                kbps(len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)), len(codes))
                for data in packed
            ]
        },
    )
    for restart_s in RESTARTS_S:
        rates, encode, decode = whole_packets(
            LmCoder(model), LmCoder(model), codes, layers, restart_s
        )
        record.add(
            {"coding": "language model", "restart_s": restart_s},
            values={"kbps": rates, "encode_x_real_time": encode, "decode_x_real_time": decode},
        )
    times = frame_by_frame(model, codes[: 20 * FRAME_RATE], layers)
    record.add(
        {"coding": "language model, a packet per frame"},
        {"encode": times[0], "decode": times[1]},
        values={
            "kbps": times[2],
            "lm_sha256": model.sha256.hex(),
            "bytes": sum(t.nbytes for t in model.tensors.values()),
        },
        deadline_ms=1000 / FRAME_RATE,
    )
    record.add({"network": "the original's, random weights"}, {"step": paper_frames(books, 400)})
    print(record.table())
    for case in record.cases:
        print(case.case, case.values)
    record.write()


if __name__ == "__main__":
    main()
