"""Entropy coding with the portable language model: whole packets at once, or frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.coding import Coding, split_layers, unpack_raw
from encodec_rt.bitstream.packet import pack_codes, packed_size
from encodec_rt.bitstream.payloads import Payload
from encodec_rt.bitstream.range_coder import SymbolDecoder, SymbolEncoder
from encodec_rt.errors import InputError, PacketError
from encodec_rt.lm.integer import IntegerLm, LmState, Product
from encodec_rt.lm.stepping import LmStepper
from encodec_rt.types import Codes

MIN_BATCH = 4
"""From this many frames on, coding them together is faster than coding them one by one."""


class LmCoder:
    """A CodeCoder that uses a language model. It has state: use one per stream and direction."""

    coding = Coding.LANGUAGE_MODEL
    needs_history = True

    def __init__(self, model: IntegerLm, product: Product = np.matmul) -> None:
        """``product`` must be exact for integers (see ``integer.Product``); any will do."""
        self.sha256 = model.sha256
        self._model = model
        self._product = product
        self.bits = (model.config.codebook_size - 1).bit_length()
        self._state = model.start()
        self._steppers: dict[int, LmStepper] = {}

    def fresh(self) -> LmCoder:
        """A new coder with the same model."""
        return LmCoder(self._model, self._product)

    def encode(self, codes: Codes, layers: Sequence[int], *, restart: bool) -> list[Payload]:
        """One payload per layer, packed if that is no longer. Raises InputError."""
        packet = self.packet(layers, restart=restart)
        packet.push(codes)
        return packet.finish()

    def packet(self, layers: Sequence[int], *, restart: bool) -> LmPacket:
        """A packet that is coded as its frames arrive. Raises InputError."""
        return LmPacket(self, layers, self._begin(layers, restart, InputError))

    def decode(
        self, payloads: Sequence[Payload], layers: Sequence[int], frames: int, *, restart: bool
    ) -> Codes:
        """Decode a packet -> codes [frames, codebooks]. Raises PacketError for invalid bytes."""
        state = self._begin(layers, restart, PacketError)
        books = [sum(layers[:layer]) for layer in range(len(payloads) + 1)]
        codes = np.empty((frames, books[-1]), np.uint16)
        decoders: list[SymbolDecoder | None] = []
        for layer, payload in enumerate(payloads):
            if payload.raw:
                own = unpack_raw(payload.data, self.bits, frames, layers[layer])
                codes[:, books[layer] : books[layer + 1]] = own
            decoders += [None if payload.raw else SymbolDecoder(payload.data)] * layers[layer]
        stepper = self.stepper(len(payloads))
        stepper.clear(state)
        for frame in codes:
            stepper.begin(state)
            for book, decoder in enumerate(decoders):
                if decoder is not None:
                    frame[book] = decoder.decode_one(stepper.probabilities())
                stepper.take(frame[book])
            stepper.end(state)
        return codes

    def stepper(self, depth: int) -> LmStepper:
        """The stepper for frames of the first ``depth`` layers."""
        if depth not in self._steppers:
            self._steppers[depth] = LmStepper(self._model, depth, self._product)
        return self._steppers[depth]

    def counts(self, codes: Codes, state: LmState, depth: int) -> list[NDArray[np.int64]]:
        """The counts [T, size] for each codebook of ``codes`` [T, Q], all frames at once.

        ``state`` is advanced past these frames.
        """
        model = self._model
        contexts = model.contexts(codes[:-1], state, depth, self._product)
        below, found = np.zeros((len(codes), model.config.width)), []
        for book, symbols in enumerate(codes.T):
            found.append(model.counts(contexts, below, book, self._product))
            below += model.embed(symbols, book)
        state.last = below[-1:]
        return found

    def _begin(
        self, layers: Sequence[int], restart: bool, error: type[InputError | PacketError]
    ) -> LmState:
        wanted = self._model.config.layers[: len(layers)]
        if tuple(layers) != wanted:
            raise error(f"layers of {tuple(layers)}; the language model has {wanted}")
        if restart:
            self._state = self._model.start()
        return self._state


class LmPacket:
    """The payloads of a packet, coded while its frames arrive, in pieces of any size."""

    def __init__(self, coder: LmCoder, layers: Sequence[int], state: LmState) -> None:
        """``state`` is that at the start of the packet; pushing frames advances it."""
        self._coder, self._layers, self._state = coder, layers, state
        self._pieces: list[Codes] = []
        self._encoders: list[SymbolEncoder] = []

    def push(self, codes: Codes) -> None:
        """Append ``codes`` [frames, codebooks] with the packet's codebooks. Raises InputError."""
        parts = list(split_layers(codes, self._layers))
        if not self._encoders:
            self._encoders = [SymbolEncoder() for _ in parts]
            self._coder.stepper(len(parts)).clear(self._state)
        self._pieces.append(codes)
        if len(codes) < MIN_BATCH:
            self._step(codes, [part.shape[1] for part in parts])
            return
        counts, book = self._coder.counts(codes, self._state, len(parts)), 0
        for encoder, part in zip(self._encoders, parts, strict=True):
            own = counts[book : book + part.shape[1]]
            # Ordered by time, then by codebook.
            stacked = np.stack(own, axis=1).reshape(part.size, -1)
            encoder.encode_each(part.reshape(-1), stacked)
            book += part.shape[1]

    def finish(self) -> list[Payload]:
        """One payload per layer, packed if that is no longer."""
        codes, bits = np.concatenate(self._pieces), self._coder.bits
        payloads = []
        for encoder, part in zip(self._encoders, split_layers(codes, self._layers), strict=True):
            data = encoder.finish()
            raw = len(data) >= packed_size(part.size, bits)
            payloads.append(Payload(raw, pack_codes(part, bits) if raw else data))
        return payloads

    def _step(self, codes: Codes, books: Sequence[int]) -> None:
        stepper, state = self._coder.stepper(len(books)), self._state
        encoders = [
            encoder for encoder, own in zip(self._encoders, books, strict=True) for _ in range(own)
        ]
        for frame in codes:
            stepper.begin(state)
            for encoder, code in zip(encoders, frame, strict=True):
                encoder.encode_one(int(code), stepper.probabilities())
                stepper.take(code)
            stepper.end(state)
