"""One end of a call on the rig, a process of its own that remembers what it says and hears.

It is started by ``rig`` and gets its orders as lines of JSON.
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
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benches.environment import Json
from benches.link.calls import Talker
from encodec_rt.audio import AudioReader
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


class Mouth(Talker):
    """Says its clip for so many frames, and remembers when each was there."""

    def __init__(self, codec: Codec, audio: NDArray[np.float32], frames: int) -> None:
        """``audio`` is mono, and begins anew at its end."""
        super().__init__(codec.config, audio)
        self._left = frames
        self.read_s: list[float] = []

    async def read(self) -> Audio | None:
        """The next hop, or None after the last."""
        audio = await super().read()
        self._left -= 1
        self.read_s.append(asyncio.get_running_loop().time())
        return audio if self._left >= 0 else None


class Ear(Receiver):
    """A listener that remembers packets and slots."""

    def __init__(self, decoder: FrameDecoder) -> None:
        """As a call makes its own."""
        super().__init__(decoder)
        self.packets: list[tuple[float, ...]] = []
        self.turns: list[tuple[float, PlayoutSlot]] = []

    def receive(
        self, payload: bytes, *, sequence: int, timestamp: int, ssrc: int, now_s: float
    ) -> bool:
        """As ever."""
        if payload:
            packet = parse_packet(payload, bits=self.config.codebook_nbits)
            copies = packet.redundancy.codes.shape if packet.redundancy is not None else (0, 0)
            self.packets.append((now_s, timestamp, len(payload), *packet.codes.shape, *copies))
        return super().receive(
            payload, sequence=sequence, timestamp=timestamp, ssrc=ssrc, now_s=now_s
        )

    def take(self, now_s: float, *, clock_s: float | None = None) -> HopPlan:
        """As ever."""
        planned = super().take(now_s, clock_s=clock_s)
        self.turns.append((now_s, planned.slot))
        return planned


class Recorder(NullSink):
    """Keeps what a speaker would play, and when it was there to be played."""

    def __init__(self, codec: Codec) -> None:
        """Nothing was heard yet."""
        super().__init__(codec.config)
        self.heard: list[tuple[float, Audio]] = []

    def write(self, audio: Audio) -> None:
        """Take a hop."""
        self.heard.append((asyncio.get_running_loop().time(), audio))


async def end(codec: Codec, side: str, kbps: float) -> None:
    """One end of the calls: told on standard input what to do, one line of JSON for each step."""
    clip, loop = speech(codec, side), asyncio.get_running_loop()

    async def told() -> dict[str, Any]:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        return dict(json.loads(line or "{}"))

    while (order := await told()).get("frames"):
        mouth, ear = Mouth(codec, clip, order["frames"]), Ear(codec.stream_decoder(kbps))
        recorder = Recorder(codec)
        is_caller = order["offer"] is None
        # A goodbye may get lost, and nobody signals here: each side ends the call by itself.
        options = CallOptions(bandwidth_kbps=kbps, dtx=False, hang_up_s=1.0)
        call = Call(codec, mouth, recorder, options)
        call.listener = ear
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
        _save(Path(order["log"]), mouth, ear, recorder)
        _send({"error": error, "statistics": call.statistics()})


def _send(what: object) -> None:
    print(json.dumps(what), flush=True)


def _save(log: Path, mouth: Mouth, ear: Ear, recorder: Recorder) -> None:
    """What the other process needs to judge the call, as arrays: a row for each hop and packet."""
    count = min(len(ear.turns), len(recorder.heard))
    slots = [slot for _, slot in ear.turns[:count]]
    width = max((slot.codes.shape[1] for slot in slots if slot.codes is not None), default=1)
    codes = np.full((count, width), -1, np.int32)
    for row, slot in zip(codes, slots, strict=True):
        if slot.codes is not None:
            row[: slot.codes.shape[1]] = slot.codes[0]
    np.savez(
        log,
        read_s=mouth.read_s,
        packets=np.array(ear.packets).reshape(-1, 7),
        at_s=[at_s for at_s, _ in ear.turns[:count]],
        slots=[(KINDS.index(slot.kind), slot.index, slot.skipped) for slot in slots],
        codes=codes,
        written_s=[at_s for at_s, _ in recorder.heard[:count]],
        audio=np.array([audio for _, audio in recorder.heard[:count]]),
    )


class RigEnd:
    """The process of one end, seen from here."""

    def __init__(self, side: Side, name: str, model: str, kbps: float) -> None:
        """Start it in its namespace."""
        options = (name, "--model", model, "--kbps", str(kbps))
        self._process = subprocess.Popen(
            side.command(sys.executable, "-m", "benches.link.rig_end", *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: Mapping[str, Json]) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def hear(self) -> Any:
        """Wait for its answer. Raises LinkError if it is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LinkError(f"an end of the call died with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.communicate("{}\n")


def speech(codec: Codec, side: str) -> NDArray[np.float32]:
    """The bundled clips, in the order in which this side says them; whole hops."""
    rate_hz, hop = codec.config.sampling_rate, codec.config.hop_length
    blocks: list[NDArray[np.float32]] = []
    for language in SPEECH[side]:
        asset = Path(str(resources.files("encodec_rt"))) / "assets" / f"speech_{language}.flac"
        with AudioReader(asset) as reader:
            blocks += reader.blocks(rate_hz, 1)
    audio: NDArray[np.float32] = np.concatenate(blocks, axis=1)[0]
    return audio[: len(audio) // hop * hop]


def main() -> None:
    """Be an end until told to stop."""
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
