"""One end of a call in ``rig``: a separate process that logs what it says and hears.

``rig`` starts it and sends it orders as lines of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benches.bundled import bundled
from benches.environment import Json
from benches.link.calls import Talker
from encodec_rt.bitstream.packet import parse_packet
from encodec_rt.errors import LinkError
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.endpoints import NullSink
from encodec_rt.netsim.netns import Side
from encodec_rt.streaming.codec import Codec, warm_up
from encodec_rt.streaming.frames import FrameDecoder
from encodec_rt.types import Audio
from encodec_rt.voice.jitter import Kind, PlayoutSlot
from encodec_rt.voice.receiver import HopPlan, Receiver

SPEECH = {"caller": ("it", "en"), "listener": ("en", "it")}
KINDS: tuple[Kind, ...] = ("idle", "frame", "copy", "lost", "silence", "hold")


class LoggingSource(Talker):
    """Plays its clip for a number of frames, and logs when each was read."""

    def __init__(self, codec: Codec, audio: NDArray[np.float32], frames: int) -> None:
        """``audio`` is mono and is played in a loop."""
        super().__init__(codec.config, audio)
        self._left = frames
        self.read_s: list[float] = []

    async def read(self) -> Audio | None:
        """The next hop, or None after the last."""
        audio = await super().read()
        self._left -= 1
        self.read_s.append(asyncio.get_running_loop().time())
        return audio if self._left >= 0 else None


class LoggingReceiver(Receiver):
    """A receiver that logs packets and playout slots."""

    def __init__(self, decoder: FrameDecoder) -> None:
        """Set it up as a call does."""
        super().__init__(decoder)
        self.packets: list[tuple[float, ...]] = []
        self.turns: list[tuple[float, PlayoutSlot]] = []

    def receive(
        self, payload: bytes, *, sequence: int, timestamp: int, ssrc: int, now_s: float
    ) -> bool:
        """``Receiver.receive``, logged."""
        if payload:
            packet = parse_packet(payload, bits=self.config.codebook_nbits)
            copies = packet.redundancy.codes.shape if packet.redundancy is not None else (0, 0)
            self.packets.append((now_s, timestamp, len(payload), *packet.codes.shape, *copies))
        return super().receive(
            payload, sequence=sequence, timestamp=timestamp, ssrc=ssrc, now_s=now_s
        )

    def take(self, now_s: float, *, clock_s: float | None = None) -> HopPlan:
        """``Receiver.take``, logged."""
        planned = super().take(now_s, clock_s=clock_s)
        self.turns.append((now_s, planned.slot))
        return planned


class LoggingSink(NullSink):
    """Keeps the audio that would be played, and when it was ready."""

    def __init__(self, codec: Codec) -> None:
        """Start empty."""
        super().__init__(codec.config)
        self.heard: list[tuple[float, Audio]] = []

    def write(self, audio: Audio) -> None:
        """Keep a hop."""
        self.heard.append((asyncio.get_running_loop().time(), audio))


async def end(codec: Codec, side: str, kbps: float) -> None:
    """Run one end of calls, as told on standard input, a line of JSON per step."""
    clip, loop = speech(codec, side), asyncio.get_running_loop()

    async def told() -> dict[str, Any]:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        return dict(json.loads(line or "{}"))

    while (order := await told()).get("frames"):
        source, receiver = (
            LoggingSource(codec, clip, order["frames"]),
            LoggingReceiver(codec.stream_decoder(kbps)),
        )
        sink = LoggingSink(codec)
        is_caller = order["offer"] is None
        # A goodbye may get lost, and there is no signalling here: each side ends the call itself.
        options = CallOptions(bandwidth_kbps=kbps, dtx=False, hang_up_s=1.0)
        call = Call(codec, source, sink, options)
        call.listener = receiver
        error = None
        try:
            if is_caller:
                _send(await call.offer())
                await call.accept((await told())["answer"])
            else:
                _send(await call.answer(order["offer"]))
            await call.run()
        except LinkError as failure:
            error = str(failure)
        _save(Path(order["log"]), source, receiver, sink)
        _send({"error": error, "statistics": call.statistics()})


def _send(what: object) -> None:
    print(json.dumps(what), flush=True)


def _save(log: Path, source: LoggingSource, receiver: LoggingReceiver, sink: LoggingSink) -> None:
    """Save what scoring the call needs, as arrays with a row per hop or packet."""
    count = min(len(receiver.turns), len(sink.heard))
    slots = [slot for _, slot in receiver.turns[:count]]
    width = max((slot.codes.shape[1] for slot in slots if slot.codes is not None), default=1)
    codes = np.full((count, width), -1, np.int32)
    for row, slot in zip(codes, slots, strict=True):
        if slot.codes is not None:
            row[: slot.codes.shape[1]] = slot.codes[0]
    np.savez(
        log,
        read_s=source.read_s,
        packets=np.array(receiver.packets).reshape(-1, 7),
        at_s=[at_s for at_s, _ in receiver.turns[:count]],
        slots=[(KINDS.index(slot.kind), slot.index, slot.skipped) for slot in slots],
        codes=codes,
        written_s=[at_s for at_s, _ in sink.heard[:count]],
        audio=np.array([audio for _, audio in sink.heard[:count]]),
    )


class RigEnd:
    """The process of one end, as ``rig`` controls it."""

    def __init__(self, side: Side, name: str, model: str, kbps: float) -> None:
        """Start it in its namespace."""
        options = (name, "--model", model, "--kbps", str(kbps))
        self._process = subprocess.Popen(
            side.command(sys.executable, "-m", "benches.link.rig_end", *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, what: Mapping[str, Json]) -> None:
        """Send an order."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Wait for its answer. Raises LinkError if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LinkError(f"an end of the call died with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate("{}\n")


def speech(codec: Codec, side: str) -> NDArray[np.float32]:
    """The bundled clips in the order in which this side plays them, cut to whole hops."""
    rate_hz, hop = codec.config.sampling_rate, codec.config.hop_length
    clips = [bundled(f"speech_{language}", rate_hz) for language in SPEECH[side]]
    audio: NDArray[np.float32] = np.concatenate(clips, axis=1)[0]
    return audio[: len(audio) // hop * hop]


def main() -> None:
    """Run an end until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=tuple(SPEECH))
    parser.add_argument("--model", required=True)
    parser.add_argument("--kbps", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("aioice").setLevel(logging.ERROR)
    codec = Codec.load(arguments.model)
    warm_up(codec, arguments.kbps, "primed")
    gc.freeze()
    asyncio.run(end(codec, arguments.side, arguments.kbps))


if __name__ == "__main__":
    main()
