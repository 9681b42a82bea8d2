"""The paper's language model (arXiv 2210.13438, 3.3), for ``.ecdc`` files of the original package.

It computes in floating point, and its arithmetic coder uses the results directly: a file decodes
only where machine, torch and number of threads give the same last bits. The operations here are in
the original's order, so on the same machine both write the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import PacketError, WeightsError
from encodec_rt.model.identity import file_sha256
from encodec_rt.model.tensor_files import read_pickled
from encodec_rt.types import Codes

HEADS = 8
PAST_S = 3.5
RANGE_BITS = 24
_MIN_RANGE = 2
_ROUND_OFF = 1e-8
_MAX_PERIOD = 10_000.0
_BLOCK_FRAMES = 512

State = list[Tensor]


class _Layer(nn.Module):
    """One transformer layer: attention over the past, then a feed-forward block."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, past: Tensor, past_frames: int) -> Tensor:
        """One frame [1, 1, D] after ``past`` [1, N, D]."""
        seen = torch.cat([past, x], dim=1)
        distance = past.shape[1] - torch.arange(seen.shape[1], device=x.device).view(1, -1)
        mask = ~((distance >= 0) & (distance <= past_frames))
        found = self.self_attn(x, seen, seen, attn_mask=mask, need_weights=False)[0]
        x = self.norm1(x + found)
        inner = self.linear2(nn.functional.gelu(self.linear1(x)))
        normed: Tensor = self.norm2(x + inner)
        return normed


class _Transformer(nn.Module):
    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(_Layer(dim, hidden) for _ in range(layers))


class PaperLm(nn.Module):
    """The original package's ``LMModel``, one frame at a time."""

    def __init__(
        self, *, books: int, size: int, dim: int, hidden: int, layers: int, past_frames: int
    ) -> None:
        super().__init__()
        self.transformer = _Transformer(dim, hidden, layers)
        self.emb = nn.ModuleList(nn.Embedding(size + 1, dim) for _ in range(books))
        self.linears = nn.ModuleList(nn.Linear(dim, size) for _ in range(books))
        self.past_frames = past_frames
        self.sha256 = ""

    @classmethod
    def load(cls, path: Path, config: EncodecConfig) -> PaperLm:
        """Read one of the original's ``.th`` files for a codec with ``config``.

        Raises WeightsError for any other file, or a model for another codec.
        """
        tensors = read_pickled(path)
        try:
            size, dim = tensors["linears.0.weight"].shape
            hidden = len(tensors["transformer.layers.0.linear1.weight"])
        except (KeyError, ValueError):
            raise WeightsError(f"{path} is not a language model of the original package") from None
        layers = {
            found[1]
            for name in tensors
            if (found := re.match(r"transformer\.layers\.(\d+)\.", name))
        }
        books = sum(name.startswith("linears.") and name.endswith(".weight") for name in tensors)
        if size != config.codebook_size or books < config.num_quantizers or dim % (2 * HEADS):
            raise WeightsError(
                f"{path} is for {books} codebooks of {size}; the codec has "
                f"{config.num_quantizers} of {config.codebook_size}"
            )
        model = cls(
            books=books,
            size=size,
            dim=dim,
            hidden=hidden,
            layers=len(layers),
            past_frames=int(PAST_S * config.frame_rate),
        )
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f"{path} does not fit the language model: {reason}") from None
        model.sha256 = file_sha256(path)
        return model.eval()

    @torch.inference_mode()
    def step(self, last: Tensor, past: State | None, frame: int) -> tuple[Tensor, State]:
        """Probabilities [size, books] of frame number ``frame``, and the new state.

        ``last`` [1, books, 1] holds the previous frame's codes plus 1, or 0 if there was none.
        """
        x = sum(self.emb[book](last[:, book]) for book in range(last.shape[1]))
        assert isinstance(x, Tensor)
        past = past or [torch.zeros_like(x) for _ in self.transformer.layers]
        x = self.transformer.norm_in(x) + _position(frame, x.shape[-1])
        kept = []
        for layer, before in zip(self.transformer.layers, past, strict=True):
            kept.append(torch.cat([before, x], dim=1)[:, -self.past_frames :])
            x = layer(x, before, self.past_frames)
        logits = [self.linears[book](x) for book in range(last.shape[1])]
        return torch.softmax(torch.stack(logits, dim=1).permute(0, 3, 1, 2), dim=1)[
            0, :, :, 0
        ], kept


class PaperEncoder:
    """Encodes the codes of one segment to bytes."""

    def __init__(self, model: PaperLm) -> None:
        self._frames = _Frames(model)
        self._low, self._high, self._bits_held = 0, 0, 0
        self._bits = bytearray()

    def write(self, codes: Codes) -> None:
        """Append ``codes`` [frames, books]."""
        for frame in codes:
            for value, edges in zip(
                frame.tolist(), self._frames.edges(codes.shape[1]), strict=True
            ):
                while self._high - self._low + 1 < 1 << RANGE_BITS:
                    self._low, self._high = 2 * self._low, 2 * self._high + 1
                    self._bits_held += 1
                lows, highs = _inside(edges, self._high - self._low + 1)
                self._low, self._high = self._low + int(lows[value]), self._low + int(highs[value])
                self._shed()
            self._frames.last = frame

    def finish(self) -> bytes:
        """All bytes of the segment, each filled from its lowest bit."""
        while self._bits_held:
            self._bits_held -= 1
            self._bits.append(self._low >> self._bits_held & 1)
        return np.packbits(np.frombuffer(bytes(self._bits), np.uint8), bitorder="little").tobytes()

    def _shed(self) -> None:
        """Emit the leading bits that both ends of the interval share."""
        while self._bits_held:
            top = self._low >> self._bits_held - 1
            if top != self._high >> self._bits_held - 1:
                return
            self._bits.append(top)
            self._bits_held -= 1
            self._low -= top << self._bits_held
            self._high -= top << self._bits_held


class PaperDecoder:
    """Decodes the segments of a file to codes."""

    def __init__(self, model: PaperLm) -> None:
        self._model = model

    def segment(self, file: BinaryIO, frames: int, books: int) -> Iterator[Codes]:
        """The ``frames`` of a segment in blocks [n, books]; fewer if the file ends early.

        Raises PacketError for bits that cannot occur with this machine's probabilities.
        """
        state, bits = _Frames(self._model), _bits_of(file)
        low = high = current = held = 0
        block = np.empty((0, books), np.uint16)
        for _ in range(frames):
            frame = np.empty(books, np.uint16)
            for book, edges in enumerate(state.edges(books)):
                while high - low + 1 < 1 << RANGE_BITS:
                    bit = next(bits, None)
                    if bit is None:
                        yield block
                        return
                    low, high, current, held = 2 * low, 2 * high + 1, 2 * current + bit, held + 1
                lows, highs = _inside(edges, high - low + 1)
                value = int(np.searchsorted(lows, current - low, side="right")) - 1
                if value < 0 or current - low > highs[value]:
                    raise PacketError(
                        "the stream does not decode with this language model: it is damaged, "
                        "belongs to another model, or was written on a machine whose floating-"
                        "point results differ in the last bits; such files are not portable"
                    )
                frame[book] = value
                low, high = low + int(lows[value]), low + int(highs[value])
                while held and low >> held - 1 == high >> held - 1:
                    top = low >> held - 1
                    held -= 1
                    low, high = low - (top << held), high - (top << held)
                    current -= top << held
            state.last = frame
            block = np.concatenate([block, frame[None]])
            if len(block) == _BLOCK_FRAMES:
                yield block
                block = block[:0]
        if len(block):
            yield block


class _Frames:
    """The model's predictions, frame by frame."""

    def __init__(self, model: PaperLm) -> None:
        self.last: Codes | None = None
        self._model = model
        self._past: State | None = None
        self._frame = 0

    def edges(self, books: int) -> list[NDArray[np.int64]]:
        """For each codebook, the cumulative counts [size] of its codes, out of 2^24."""
        last = torch.zeros(1, books, 1, dtype=torch.long)
        if self.last is not None:
            last = 1 + torch.from_numpy(self.last.astype(np.int64)).view(1, books, 1)
        shares, self._past = self._model.step(last, self._past, self._frame)
        self._frame += 1
        total = 1 << RANGE_BITS
        free = (1 - _MIN_RANGE * len(shares) / total) * total
        found = []
        for column in shares.unbind(1):
            rounded = (column / _ROUND_OFF).floor() * _ROUND_OFF
            ranges = (free * rounded).floor().long() + _MIN_RANGE
            found.append(torch.cumsum(ranges, dim=-1).numpy())
        return found


def _inside(edges: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last offset of each code's share of an interval of ``width``, rounded inwards."""
    unit = width / (1 << RANGE_BITS)
    lows = np.ceil(np.concatenate([[0], edges[:-1]]) * unit).astype(np.int64)
    return lows, np.floor((edges - 1) * unit).astype(np.int64)


def _bits_of(file: BinaryIO) -> Iterator[int]:
    """Bits, lowest first in each byte; a byte is read only when one of its bits is needed."""
    while byte := file.read(1):
        yield from (byte[0] >> place & 1 for place in range(8))


def _position(frame: int, dim: int) -> Tensor:
    """Cosines and sines of the position [1, 1, D], as the original computes them."""
    half = torch.arange(dim // 2).view(1, 1, -1)
    phase = torch.full((1, 1, 1), frame) / (_MAX_PERIOD ** (half / (dim // 2 - 1)))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)
