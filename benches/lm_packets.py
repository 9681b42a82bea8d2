"""What entropy coding would save in a call, where each packet must be decodable by itself.

``python -m benches.lm`` measures it; docs/decisions/packed-calls.md draws the conclusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from benches.record import Record
from encodec_rt.bitstream.packet import pack_codes
from encodec_rt.bitstream.range_coder import SymbolEncoder
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.types import Codes

MAX_FRAMES = 1500
WIRE_BYTES = 20 + 8 + 12 + 10
"""Headers of IP, UDP and RTP, and SRTP's authentication tag, around each payload of a call."""


def by_themselves(
    codes: Codes, frames: int, counts_of: Callable[[Codes], Iterable[np.ndarray]]
) -> float:
    """The mean bytes of packets of ``frames``, coded as one layer and without earlier frames."""
    sizes = []
    for start in range(0, len(codes) - frames + 1, frames):
        part = codes[start : start + frames]
        encoder = SymbolEncoder()
        stacked = np.stack(list(counts_of(part)), axis=1).reshape(part.size, -1)
        encoder.encode_each(part.reshape(-1), stacked)
        sizes.append(len(encoder.finish()))
    return float(np.mean(sizes))


def lossy_packets(
    record: Record, model: IntegerLm, tables: np.ndarray | None, codes: Codes
) -> None:
    """Add a case for each number of codebooks, 1 and 4 frames per packet, and each coder."""

    def by_table(part: Codes) -> Iterable[np.ndarray]:
        assert tables is not None
        return (np.tile(tables[book], (len(part), 1)) for book in range(part.shape[1]))

    def by_lm(part: Codes) -> Iterable[np.ndarray]:
        depth = int(np.searchsorted(np.cumsum(model.config.layers), part.shape[1])) + 1
        return LmCoder(model).counts(part, model.start(), depth)

    bits = (model.config.codebook_size - 1).bit_length()
    ways = {"language model": by_lm} | ({} if tables is None else {"tables": by_table})
    for books in np.cumsum(model.config.layers):
        for frames in (1, 4):
            part = codes[:MAX_FRAMES, :books]
            packed = len(pack_codes(part[:frames], bits))
            for name, counts_of in ways.items():
                coded = by_themselves(part, frames, counts_of)
                record.add(
                    {"packet of a call": name, "codebooks": int(books), "frames": frames},
                    values={
                        "packed_bytes": packed,
                        "coded_bytes": coded,
                        "smaller_on_the_wire": (packed - coded) / (1 + packed + WIRE_BYTES),
                    },
                )
