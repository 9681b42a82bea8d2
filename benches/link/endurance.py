"""Whether delay or memory grows during a call: an hour of one, and ten minutes in real time.

    python -m benches.link.endurance hour
    python -m benches.link.endurance call

The hour passes on a virtual clock. The ten minutes are a call between two processes, through aiortc
over this machine's own addresses.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benches.environment import Json
from benches.link.calls import ModelChoice, Window, add_arguments, speech
from benches.link.far import Apart, poll
from benches.record import Record
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import Direction
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.receiver import Receiver

HOUR = PathProfile(delay_ms=40, jitter_ms=8, loss=0.03, burst=2, spike_every_s=20)


async def talk(model: ModelChoice, *, minutes: int) -> list[dict[str, Json]]:
    """A call between two processes -> the figures of each minute at either end."""
    found: list[dict[str, Json]] = []
    call = await Apart.begin(model)
    for minute in range(minutes):
        await asyncio.sleep(60)
        for name, end in (("caller", call.caller), ("callee", call.callee)):
            found.append({"minute": minute + 1, "end": name, **await end.do(poll)})
            print(found[-1], flush=True)
    await call.end()
    return found


def hour(model: ModelChoice, *, hours: float, parts: int = 6) -> list[dict[str, Json]]:
    """A call on a virtual clock through encoder, packets, network, jitter buffer and decoder.

    Returns the figures of each of ``parts`` of it; memory is that of the whole process.
    """
    codec, kbps = model.load(), model.kbps
    config, audio = codec.config, speech(codec.config.sampling_rate)
    count = int(hours * 3600 * config.frame_rate)
    listener = Receiver(codec.stream_decoder(kbps))
    direction = Direction(
        _frames(codec, kbps, audio, count),
        Channel(HOUR, 0),
        listener,
        controller=RateController(
            codebooks=config.codebooks_for(kbps),
            bits=config.codebook_nbits,
            frame_rate_hz=config.frame_rate,
        ),
        drift_ppm=50,
    )
    window, delays_ms = Window(listener, config.hop_length), list[float]()
    found: list[dict[str, Json]] = []
    for at, hop in enumerate(direction.run()):
        if hop.slot.codes is not None:
            delays_ms.append(direction.delay_ms(hop))
        if at % (count // parts) == count // parts - 1:
            delay_ms = float(np.median(delays_ms))
            delays_ms.clear()
            found.append({"minute": round(hop.at_s / 60, 1), "delay_p50_ms": delay_ms})
            found[-1] |= window.poll() | {"frames_waiting": listener.buffer.waiting}
            print(found[-1], flush=True)
    return found


def _frames(
    codec: Codec, kbps: float, audio: NDArray[np.float32], count: int
) -> Iterator[tuple[Codes, bool]]:
    """``count`` frames of ``audio`` in a loop, with a pause after each repetition."""
    hop = codec.config.hop_length
    hops = audio[: len(audio) // hop * hop].reshape(-1, hop)
    encoder = codec.stream_encoder(kbps)
    pause = len(hops) // 4
    for at in range(count):
        place = at % (len(hops) + pause)
        active = place < len(hops)
        said = hops[place] if active else np.zeros(hop, np.float32)
        yield encoder.push(said)[0], active


def main() -> None:
    """Run one of the two, and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("hour", "call"))
    add_arguments(parser)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--minutes", type=int, default=10)
    arguments = parser.parse_args()
    model = ModelChoice.from_arguments(arguments)
    record = Record(f"link-{arguments.what}")
    if arguments.what == "hour":
        for values in hour(model, hours=arguments.hours):
            record.add(model.case, values=values)
    else:
        for values in asyncio.run(talk(model, minutes=arguments.minutes)):
            end = values.pop("end")
            record.add({**model.case, "end": end}, values=values)
    print(record.table())
    print(record.write())


if __name__ == "__main__":
    main()
