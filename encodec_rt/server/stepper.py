"""One pass over all sessions: waiting input is encoded and decoded, each in one batch.

It never waits. Starts and ends of exact streams, which take as long as several passes, are given to
another thread and come back as commands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_rt.server.queues import ClipEnd, Output, WaitingFrame
from encodec_rt.server.slot_stream import SlotStream
from encodec_rt.streaming.engine import Engine

MAX_FRAMES = 4
"""The most frames of one session in one step, when it is behind."""

Apart = Callable[[Callable[[], Any], Callable[[Any], list[Output]]], None]
"""(work, what to do with its result): work runs on another thread, the result comes back here."""
Group = list[tuple[SlotStream, list[WaitingFrame]]]


class Stepper:
    """Steps the sessions of one engine."""

    def __init__(self, engine: Engine, apart: Apart) -> None:
        """For the thread that owns ``engine``."""
        self._engine, self._apart = engine, apart
        self._config = engine.model.config
        self.batch_sizes: list[int] = []
        """Slots in each step since the list was last emptied."""
        self.concealed = 0
        """Lost frames that were concealed."""

    def step(self, streams: Iterable[SlotStream], now_s: float) -> list[Output]:
        """The results of one pass over ``streams``, at ``now_s`` of a monotonic clock."""
        streams = list(streams)
        # Decoded first: what a call decodes is encoded again in the same pass.
        outputs = self._decode([each for each in streams if self._has_codes(each)])
        groups: dict[int, Group] = defaultdict(list)
        for stream in streams:
            frames = self._next_pcm(stream, now_s)
            if frames:
                groups[len(frames)].append((stream, frames))
        for group in groups.values():
            outputs += self._encode(group)
        return outputs

    def _next_pcm(self, stream: SlotStream, now_s: float) -> list[WaitingFrame]:
        """What ``stream`` encodes in this pass; also begins and ends its clips."""
        queue = stream.pcm
        if stream.encoding_apart or not len(queue):
            return []
        if stream.progress.encoder_begun:
            if isinstance(queue.peek(), ClipEnd):
                self._finish_pcm(stream, [])
                return []
            # A power of two, so that few kinds of steps are needed.
            ready = queue.frames_ready(MAX_FRAMES)
            ready = stream.may_take(ready, now_s) if ready else 0
            return queue.take_frames(1 << ready.bit_length() - 1 if ready else 0)
        needed = self._engine.model.encoder_start_frames
        ready = queue.frames_ready(needed)
        if ready == needed:
            self._begin_pcm(stream, queue.take_frames(needed))
        elif isinstance(queue.peek(ready), ClipEnd):
            self._finish_pcm(stream, queue.take_frames(ready))
        return []

    def _encode(self, group: Group) -> list[Output]:
        pcm = torch.from_numpy(np.stack([_joined(frames) for _, frames in group]))
        if self._config.audio_channels == 1:
            pcm = pcm[:, 0]
        self.batch_sizes.append(len(group))
        stepped = self._engine.encode_slots([stream.slot for stream, _ in group], pcm)
        codes = stepped.rows.clone()
        outputs: list[Output] = []
        for (stream, frames), rows in zip(group, codes, strict=True):
            outputs += self._encoded(stream, frames, rows)
        echoing = [at for at, (stream, _) in enumerate(group) if stream.echoes]
        direct = [at for at in echoing if group[at][0].progress.decoder_begun]
        if direct:
            outputs += self._echo([group[at] for at in direct], codes[direct])
        for at in sorted(set(echoing) - set(direct)):
            self._begin_echo(group[at][0])
        return outputs

    def _encoded(
        self, stream: SlotStream, frames: Sequence[WaitingFrame], codes: Tensor
    ) -> list[Output]:
        stream.progress.encoded = frames[-1].index + 1
        stream.changed = True
        outputs = []
        for frame, row in zip(frames, codes, strict=True):
            arrived_s = None if stream.echoes else frame.arrived_s
            outputs.append(stream.codes_out(frame.index, row.numpy().astype(np.uint16), arrived_s))
            if stream.echoes and not stream.progress.decoder_begun:
                stream.to_echo.append((frame.index, row, frame.arrived_s))
        return outputs

    def _echo(self, group: Group, codes: Tensor) -> list[Output]:
        """Decode what was just encoded."""
        slots = [stream.slot for stream, _ in group]
        audio = self._engine.decode_slots(slots, self._engine.dequantize(codes).rows).rows
        hop, outputs = self._config.hop_length, []
        for (stream, frames), heard in zip(group, audio.numpy(), strict=True):
            for at, frame in enumerate(frames):
                piece = heard[..., at * hop : (at + 1) * hop]
                outputs += stream.audio_out(frame.index, piece, frame.arrived_s)
            stream.progress.decoded = frames[-1].index + 1
        return outputs

    def _has_codes(self, stream: SlotStream) -> bool:
        """Whether ``stream`` decodes in this pass; also begins and ends its clips."""
        queue = stream.codes
        if stream.decoding_apart or not len(queue):
            return False
        if stream.progress.decoder_begun:
            if isinstance(queue.peek(), ClipEnd):
                self._finish_codes(stream, [])
                return False
            return True
        needed = self._engine.model.decoder_start_frames
        ready = queue.frames_ready(needed)
        if ready == needed:
            self._begin_codes(stream, queue.take_frames(needed))
        elif isinstance(queue.peek(ready), ClipEnd):
            self._finish_codes(stream, queue.take_frames(ready))
        return False

    def _decode(self, streams: list[SlotStream]) -> list[Output]:
        taken = [(stream, stream.codes.take_frames(1)) for stream in streams]
        group = [(stream, frames[0]) for stream, frames in taken if frames]
        if not group:
            return []
        latents = []
        for stream, frame in group:
            self.concealed += stream.is_lost(frame)
            latents.append(stream.next_latent(frame))
        self.batch_sizes.append(len(group))
        slots = [stream.slot for stream, _ in group]
        audio = self._engine.decode_slots(slots, torch.stack(latents)).rows.clone().numpy()
        outputs: list[Output] = []
        for (stream, frame), heard in zip(group, audio, strict=True):
            stream.progress.decoded, stream.changed = frame.index + 1, True
            outputs += stream.heard(frame, heard)
        return outputs

    def _begin_pcm(self, stream: SlotStream, frames: list[WaitingFrame]) -> None:
        pcm = self._floats(np.concatenate([frame.content for frame in frames], axis=1))
        edges = self._engine.edges
        stream.encoding_apart = True

        def begun(result: tuple[Tensor, Tensor]) -> list[Output]:
            codes, row = result
            stream.encoding_apart = False
            self._engine.load_state(stream.slot, (row, None))
            stream.progress.encoder_begun = True
            outputs = self._encoded(stream, frames, codes.cpu())
            if stream.echoes:
                self._begin_echo(stream)
            return outputs

        self._apart(lambda: edges.begin_encoder(pcm), begun)

    def _begin_echo(self, stream: SlotStream) -> None:
        """Begin decoding what waits to be echoed, if that is enough."""
        needed = self._engine.model.decoder_start_frames
        if stream.decoding_apart or len(stream.to_echo) < needed:
            return
        head = [stream.to_echo.popleft() for _ in range(needed)]
        codes = torch.stack([row for _, row, _ in head])
        self._begin_decoder(stream, head[0][0], codes, head[-1][2])

    def _begin_codes(self, stream: SlotStream, frames: list[WaitingFrame]) -> None:
        codes = torch.stack([self._whole_codes(frame) for frame in frames])
        self._begin_decoder(stream, frames[0].index, codes, frames[-1].arrived_s)

    def _begin_decoder(
        self, stream: SlotStream, index: int, codes: Tensor, arrived_s: float
    ) -> None:
        edges, codes = self._engine.edges, stream.own(codes)
        stream.decoding_apart = True

        def begun(result: tuple[Tensor, Tensor]) -> list[Output]:
            audio, row = result
            stream.decoding_apart = False
            self._engine.load_state(stream.slot, (None, row))
            stream.progress.decoder_begun = stream.changed = True
            stream.progress.decoded = index + len(codes)
            outputs = stream.audio_out(index, audio.cpu().numpy(), arrived_s)
            # Including frames encoded meanwhile.
            while stream.to_echo:
                at, row, since_s = stream.to_echo.popleft()
                frame = WaitingFrame(at, None, since_s)
                outputs += self._echo([(stream, [frame])], row[None, None])
            return outputs

        self._apart(lambda: edges.begin_decoder(codes), begun)

    def _finish_pcm(self, stream: SlotStream, frames: list[WaitingFrame]) -> None:
        """End a clip with what is left, including ``frames`` that were too few to begin it."""
        if stream.decoding_apart:
            return
        end = stream.pcm.take()
        assert isinstance(end, ClipEnd), "a clip's end was seen in the queue"
        rest = [frame.content for frame in frames] + [end.rest]
        pcm = self._floats(np.concatenate(rest, axis=1))  # type: ignore[arg-type]
        index = frames[0].index if frames else end.index
        encoder, decoder = self._engine.state_of(stream.slot)
        progress, edges, echoes = stream.progress, self._engine.edges, stream.echoes
        waiting = [row for _, row, _ in stream.to_echo]
        stream.to_echo.clear()
        stream.encoding_apart = True

        def finish() -> tuple[Tensor, Tensor | None]:
            codes = edges.finish_encoder(encoder if progress.encoder_begun else None, pcm)
            ending = torch.cat([*(row[None] for row in waiting), codes.cpu()])
            if not echoes or not (len(ending) or progress.decoder_begun):
                return codes, None
            row = decoder if progress.decoder_begun else None
            return codes, edges.finish_decoder(row, stream.own(ending))

        def finished(result: tuple[Tensor, Tensor | None]) -> list[Output]:
            codes, audio = result
            stream.encoding_apart = False
            outputs = [
                stream.codes_out(index + at, row.numpy().astype(np.uint16), None)
                for at, row in enumerate(codes.cpu())
            ]
            progress.encoded = index + len(codes)
            if audio is not None:
                lag = self._engine.model.decoder_lag if progress.decoder_begun else 0
                length = len(waiting) * self._config.hop_length + pcm.shape[-1] + lag
                heard = audio[..., :length].cpu().numpy()
                outputs += stream.audio_out(index - len(waiting), heard, None)
            if echoes:
                progress.decoded = progress.encoded
                stream.renew_decoder()
            stream.renew_encoder()
            stream.changed = True
            direction = "echo" if echoes else "encode"
            fields = {"direction": direction, "frame": progress.encoded}
            return [*outputs, Output(stream.key, event="Finalized", fields=fields)]

        self._apart(finish, finished)

    def _finish_codes(self, stream: SlotStream, frames: list[WaitingFrame]) -> None:
        end = stream.codes.take()
        assert isinstance(end, ClipEnd), "a clip's end was seen in the queue"
        _, decoder = self._engine.state_of(stream.slot)
        progress, edges = stream.progress, self._engine.edges
        books = self._engine.codebooks
        rows = [self._whole_codes(frame) for frame in frames]
        codes = torch.stack(rows) if rows else torch.zeros(0, books, dtype=torch.int64)
        stream.decoding_apart = True

        def finish() -> Tensor | None:
            if not rows and not progress.decoder_begun:
                return None
            return edges.finish_decoder(decoder if progress.decoder_begun else None, codes)

        def finished(audio: Tensor | None) -> list[Output]:
            stream.decoding_apart = False
            progress.decoded = max(progress.decoded, end.index)
            index = frames[0].index if frames else end.index
            outputs = [] if audio is None else stream.audio_out(index, audio.cpu().numpy(), None)
            stream.renew_decoder()
            stream.changed = True
            fields = {"direction": "decode", "frame": progress.decoded}
            return [*outputs, Output(stream.key, event="Finalized", fields=fields)]

        self._apart(finish, finished)

    def _whole_codes(self, frame: WaitingFrame) -> Tensor:
        """A frame's codes [Q] for all of the engine's codebooks; absent ones are -1."""
        codes = torch.full((self._engine.codebooks,), -1, dtype=torch.int64)
        if frame.content is not None:
            codes[: len(frame.content)] = torch.from_numpy(frame.content.astype(np.int64))
        return codes

    def _floats(self, samples: Any) -> Tensor:
        """[channels, n] int16 -> float32 [n] or [channels, n]."""
        pcm = torch.from_numpy(samples.astype(np.float32) / 32768.0)
        return pcm[0] if self._config.audio_channels == 1 else pcm


def _joined(frames: list[WaitingFrame]) -> Any:
    contents: list[Any] = [frame.content for frame in frames]
    joined = contents[0] if len(contents) == 1 else np.concatenate(contents, axis=1)
    return joined.astype(np.float32) / 32768.0
