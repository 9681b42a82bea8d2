"""Many live streams in one batch: a slot each, all stepped by one frame per tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.cuda_graph import Tick
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.weights import CodecWeights, Start


@dataclass(frozen=True)
class EngineInfo:
    """What an engine runs on: the backend of every row, and the memory a slot takes.

    ``graphs`` says of each direction whether a CUDA graph holds its whole tick, or why not.
    """

    device: str
    slots: int
    codebooks: int
    rows: Mapping[str, str]
    graphs: Mapping[str, str]
    encoder_bytes_per_slot: int
    decoder_bytes_per_slot: int


class Engine:
    """S slots, each an encoder and a decoder stream of its own, stepped together.

    One thread owns an engine. Tensors that are on the device already are trusted to be finite;
    audio and codes from the host are checked, so a check never waits for the device.
    """

    def __init__(
        self,
        model: CodecWeights,
        slots: int,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        graph: bool | None = None,
    ) -> None:
        """Use Codec.engine. Every slot is as new under ``start``.

        Raises ConfigError, and BackendUnavailable if ``graph`` is True and there cannot be one.
        """
        if slots < 1:
            raise ConfigError(f"slots={slots}; an engine has at least one")
        self.model = model
        self.slots = slots
        self.codebooks = model.config.codebooks_for(bandwidth_kbps)
        self._encoder = Runner(model.encoder, slots, model.device)
        self._decoder = Runner(model.decoder, slots, model.device)
        self._search, self._look_up = model.search(self.codebooks), model.look_up()
        self._fresh = model.start_state(start, self.codebooks)
        self._graph = graph
        channels, hop = model.config.audio_channels, model.config.hop_length
        self._audio_shape = (slots, hop) if channels == 1 else (slots, channels, hop)
        silence = torch.zeros(self._audio_shape, device=model.device)
        self._encode = Tick(self._encode_step, silence, graph=graph)
        self._decode = {self.codebooks: self._decode_tick(self.codebooks)}
        self.reset(range(slots))

    @torch.inference_mode()
    def encode(self, pcm: Tensor, active: Tensor | None = None) -> Tensor:
        """One frame of every slot: audio [S, hop] or [S, channels, hop] -> codes [S, Q] int64.

        The slots that are ``active`` [S] bool, by default all, move on; the others stay bit for
        bit what they were, and their row of the result means nothing. The result is one buffer
        on the device of the input, valid until the next call; on the host it is ready to be read.
        Raises InputError.
        """
        if pcm.shape != self._audio_shape or pcm.dtype != torch.float32:
            raise InputError(
                f"audio of shape {tuple(pcm.shape)} and type {pcm.dtype}; this engine takes "
                f"float32 {self._audio_shape}"
            )
        self._check_mask(active)
        if pcm.device.type == "cpu" and not _all_finite(pcm, active):
            raise InputError("the audio of an active slot holds NaN or infinite samples")
        return self._encode(pcm, active)

    @torch.inference_mode()
    def decode(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """One frame of every slot: codes [S, Q] int64 -> audio [S, hop] or [S, channels, hop].

        As ``encode`` for ``active`` and the result. Q may be less than the engine's codebooks.
        """
        config = self.model.config
        if codes.ndim != 2 or len(codes) != self.slots or codes.dtype != torch.int64:
            raise InputError(
                f"codes of shape {tuple(codes.shape)} and type {codes.dtype}; this engine takes "
                f"int64 {(self.slots, self.codebooks)}"
            )
        if not 1 <= codes.shape[1] <= config.num_quantizers:
            raise InputError(f"{codes.shape[1]} codebooks; this model has {config.num_quantizers}")
        self._check_mask(active)
        if codes.device.type == "cpu":
            named = codes if active is None else codes[active.cpu()]
            if (
                named.numel()
                and not 0 <= int(named.min()) <= int(named.max()) < config.codebook_size
            ):
                raise InputError(f"codes outside [0, {config.codebook_size}) in an active slot")
            # What an idle slot holds may be anything, an index that does not exist included.
            codes = codes.clamp(0, config.codebook_size - 1)
        books = codes.shape[1]
        if books not in self._decode:
            self._decode[books] = self._decode_tick(books)
        return self._decode[books](codes, active)

    @torch.inference_mode()
    def reset(self, slots: Sequence[int] | Tensor) -> None:
        """Make ``slots`` as new, bit for bit; no other slot changes."""
        index = torch.as_tensor(slots, dtype=torch.int64)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.slots:
            raise InputError(f"slots {index.tolist()}; this engine has {self.slots}")
        index = index.to(self.model.device)
        self._encoder.now.load_(index, self._fresh[0])
        self._decoder.now.load_(index, self._fresh[1])

    @torch.inference_mode()
    def begin_encoder(self, slot: int, pcm: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> codes [encoder_start_frames, Q] int64.

        ``pcm`` [n] or [channels, n] is the first ``encoder_start_frames`` frames of audio; the
        slot then goes on with ``encode``.
        """
        config, frames = self.model.config, self.model.encoder_start_frames
        audio = pcm[None] if pcm.ndim == 1 else pcm
        if audio.shape != (config.audio_channels, frames * config.hop_length):
            raise InputError(f"audio of shape {tuple(pcm.shape)}; pass {frames} frames")
        if pcm.device.type == "cpu" and not bool(torch.isfinite(pcm).all()):
            raise InputError("the audio holds NaN or infinite samples")
        latents = self._encoder.begin(self._slot(slot), audio.t()[None].to(self.model.device))
        return self.model.ops.rvq_encode(latents, self.model.codebooks, codebooks=self.codebooks)[0]

    @torch.inference_mode()
    def begin_decoder(self, slot: int, codes: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> audio [n] or [channels, n].

        ``codes`` [decoder_start_frames, Q] int64; the slot then goes on with ``decode``.
        """
        frames = self.model.decoder_start_frames
        if codes.ndim != 2 or len(codes) != frames:
            raise InputError(f"codes of shape {tuple(codes.shape)}; pass {frames} frames")
        latents = self.model.ops.rvq_decode(codes[None].to(self.model.device), self.model.codebooks)
        audio = self._decoder.begin(self._slot(slot), latents)[0].t()
        return audio[0] if len(audio) == 1 else audio

    def state_of(self, slot: int) -> tuple[Tensor, Tensor]:
        """A copy of the encoder and decoder state [N] of one slot, for ``load_state``."""
        return self._encoder.now.row(self._slot(slot)), self._decoder.now.row(slot)

    def load_state(self, slot: int, state: tuple[Tensor, Tensor]) -> None:
        """Make ``slot`` continue, bit for bit, the stream that ``state`` was taken from."""
        self._encoder.now.load_(self._slot(slot), state[0])
        self._decoder.now.load_(slot, state[1])

    @property
    def ticks(self) -> Mapping[str, Tick]:
        """The steps under "encode" and "decode", to be timed on the device alone."""
        return {"encode": self._encode, "decode": self._decode[self.codebooks]}

    def describe(self) -> EngineInfo:
        """What this engine runs on."""
        ops = self.model.ops
        names = [field.name for field in fields(ops) if callable(getattr(TORCH, field.name))]
        rows = {
            name: TORCH.name if getattr(ops, name) is getattr(TORCH, name) else ops.name
            for name in names
            if not name.startswith("pack_")
        }
        graphs = {name: tick.eager_because or "one CUDA graph" for name, tick in self.ticks.items()}
        widths = [4 * runner.now.arena.shape[1] for runner in (self._encoder, self._decoder)]
        return EngineInfo(str(self.model.device), self.slots, self.codebooks, rows, graphs, *widths)

    def _check_mask(self, active: Tensor | None) -> None:
        if active is not None and (active.shape != (self.slots,) or active.dtype != torch.bool):
            raise InputError(
                f"active of shape {tuple(active.shape)} and type {active.dtype}; pass bool "
                f"[{self.slots}]"
            )

    def _encode_step(self, pcm: Tensor, active: Tensor) -> Tensor:
        frame = pcm.view(self.slots, self.model.config.audio_channels, -1)
        return self._search(self._encoder.step(frame.transpose(1, 2), active))[:, 0]

    def _decode_step(self, codes: Tensor, active: Tensor) -> Tensor:
        audio = self._decoder.step(self._look_up(codes[:, None]), active)
        return audio.transpose(1, 2).reshape(self._audio_shape)

    def _decode_tick(self, books: int) -> Tick:
        codes = torch.zeros(self.slots, books, dtype=torch.int64, device=self.model.device)
        return Tick(self._decode_step, codes, graph=self._graph)

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise InputError(f"slot {slot}; this engine has {self.slots}")
        return slot


def _all_finite(pcm: Tensor, active: Tensor | None) -> bool:
    named = pcm if active is None else pcm[active.cpu()]
    return bool(torch.isfinite(named).all())
