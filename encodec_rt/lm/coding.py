"""Coding codes with the portable language model: whole packets at once, or frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encodec_rt.bitstream.coding import Coding, Payload, split_layers, unpack_raw
from encodec_rt.bitstream.packet import pack_codes, packed_size
from encodec_rt.bitstream.range_coder import SymbolDecoder, SymbolEncoder
from encodec_rt.errors import InputError, PacketError
from encodec_rt.lm.integer import IntegerLm, LmState, Product
from encodec_rt.types import Codes


class LmCoder:
    """A CodeCoder by a language model. One for each direction of each stream: it remembers."""

    coding = Coding.LANGUAGE_MODEL
    needs_history = True

    def __init__(self, model: IntegerLm, product: Product = np.matmul) -> None:
        """``product`` multiplies whole numbers exactly; which one is used changes no bit."""
        self.sha256 = model.sha256
        self._model = model
        self._product = product
        self._bits = (model.config.codebook_size - 1).bit_length()
        self._state = model.start()

    def encode(self, codes: Codes, layers: Sequence[int], *, restart: bool) -> list[Payload]:
        """One payload per layer, packed where that is shorter. Raises InputError."""
        model, state = self._model, self._begin(layers, restart, InputError)
        parts = list(split_layers(codes, layers))
        contexts = model.contexts(codes[:-1], state, len(parts), self._product)
        state.last = codes[-1:]
        below = np.zeros((len(codes), model.config.width))
        payloads, book = [], 0
        for part in parts:
            counts = []
            for symbols in part.T:
                counts.append(model.counts(contexts, below, book, self._product))
                below += model.embed(symbols, book)
                book += 1
            encoder = SymbolEncoder()
            # Time outside, codebook inside.
            stacked = np.stack(counts, axis=1).reshape(part.size, -1)
            encoder.encode_each(part.reshape(-1), stacked)
            data = encoder.finish()
            raw = len(data) >= packed_size(part.size, self._bits)
            payloads.append(Payload(raw, pack_codes(part, self._bits) if raw else data))
        return payloads

    def decode(
        self, payloads: Sequence[Payload], layers: Sequence[int], frames: int, *, restart: bool
    ) -> Codes:
        """The codes. Raises PacketError for bytes that are none."""
        model, state = self._model, self._begin(layers, restart, PacketError)
        depth = len(payloads)
        books = [sum(layers[:layer]) for layer in range(depth + 1)]
        codes = np.empty((frames, books[-1]), np.uint16)
        decoders: list[SymbolDecoder | None] = []
        for layer, payload in enumerate(payloads):
            if payload.raw:
                own = unpack_raw(payload.data, self._bits, frames, layers[layer])
                codes[:, books[layer] : books[layer + 1]] = own
            decoders.append(None if payload.raw else SymbolDecoder(payload.data))
        for frame in range(frames):
            contexts = model.contexts(codes[:0], state, depth, self._product)
            below = np.zeros((1, model.config.width))
            for layer, decoder in enumerate(decoders):
                for book in range(books[layer], books[layer + 1]):
                    if decoder is not None:
                        counts = model.counts(contexts, below, book, self._product)
                        codes[frame, book] = decoder.decode_each(counts)[0]
                    below += model.embed(codes[frame, book : book + 1], book)
            state.last = codes[frame : frame + 1]
        return codes

    def _begin(
        self, layers: Sequence[int], restart: bool, error: type[InputError | PacketError]
    ) -> LmState:
        wanted = self._model.config.layers[: len(layers)]
        if tuple(layers) != wanted:
            raise error(f"layers of {tuple(layers)}; the language model has {wanted}")
        if restart:
            self._state = self._model.start()
        return self._state
