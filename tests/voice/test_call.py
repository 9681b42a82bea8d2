"""A call needs a transport and frame decoders, and does not ask which."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from encodec_rt.errors import LinkError
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.netsim.transport import SimulatedTransport
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.frames import SlotDecoder, SlotEncoder
from encodec_rt.types import Audio
from encodec_rt.voice.call import VoiceCall, VoiceOptions
from tests.support.models import speech

SECONDS = 2
SILENT_S = 0.2


class Microphone(SilentSource):
    """Gives the hops of a recording."""

    def __init__(self, codec: Codec, audio: np.ndarray) -> None:
        super().__init__(codec.config)
        self._hops = list(audio.reshape(-1, 1, codec.config.hop_length))

    async def read(self) -> Audio | None:
        await super().read()
        return self._hops.pop(0) if self._hops else None


class Speaker(NullSink):
    """Remembers what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.hops: list[Audio] = []

    def write(self, audio: Audio) -> None:
        self.hops.append(audio)


@pytest.mark.parametrize("on_an_engine", [False, True])
def test_a_call_runs_over_a_simulated_path_on_streams_or_on_slots(
    codec: Codec, on_an_engine: bool
) -> None:
    kbps = codec.config.target_bandwidths[-1]
    said = speech(SECONDS * codec.config.sampling_rate).numpy()
    profile = PathProfile(delay_ms=5, duplicate=0.05)
    options = VoiceOptions(bandwidth_kbps=kbps, hang_up_s=0.5, dtx=False)
    speaker = Speaker(codec)

    async def main() -> dict[str, dict[str, int]]:
        engine = codec.engine(2, kbps)
        ends = SimulatedTransport.pair(profile, profile)
        calls = []
        for at, (source, sink) in enumerate(
            (
                (Microphone(codec, said), NullSink(codec.config)),
                (SilentSource(codec.config), speaker),
            )
        ):
            encoder = SlotEncoder(engine, at) if on_an_engine else codec.stream_encoder(kbps)
            decoder = SlotDecoder(engine, at) if on_an_engine else codec.stream_decoder(kbps)
            calls.append(VoiceCall(encoder, decoder, source, sink, ends[at], options))
        await asyncio.gather(*(call.run() for call in calls))
        return calls[1].statistics()  # type: ignore[return-value]

    inbound = asyncio.run(main())["inbound"]
    assert inbound["packetsReceived"] > 0.8 * SECONDS * codec.config.frame_rate
    codes = codec.stream_encoder(kbps).push(said)
    wanted = codec.stream_decoder(kbps).push(codes).reshape(len(codes), -1)
    heard = np.stack(speaker.hops)
    nearest = np.array([np.abs(heard - hop).max(axis=1).min() for hop in wanted])
    assert (nearest < 0.05 * np.abs(wanted).max()).mean() > 0.5


def silent_call(codec: Codec, transport: SimulatedTransport) -> VoiceCall:
    """A call in which nobody speaks and nobody listens."""
    kbps = codec.config.target_bandwidths[-1]
    return VoiceCall(
        codec.stream_encoder(kbps),
        codec.stream_decoder(kbps),
        SilentSource(codec.config),
        NullSink(codec.config),
        transport,
        VoiceOptions(bandwidth_kbps=kbps),
    )


def test_a_path_that_ends_before_it_connects_is_an_error(codec: Codec) -> None:
    async def main() -> None:
        one, other = SimulatedTransport.pair(PathProfile(), PathProfile())
        await other.close()
        call = silent_call(codec, one)
        await call.run()

    with pytest.raises(LinkError, match="connecting to the other side failed"):
        asyncio.run(main())


def test_a_path_that_follows_another_has_its_own_time_to_be_heard(codec: Codec) -> None:
    async def main() -> tuple[float, float]:
        one, following = (SimulatedTransport.pair(PathProfile(), PathProfile())[0] for _ in "ab")
        call = silent_call(codec, one)
        running = asyncio.ensure_future(call.run())
        while call.path_silent_s < SILENT_S:
            await asyncio.sleep(0.01)
        call.line.propose(following)
        assert call.line.adopt(following)
        silences = call.path_silent_s, call.silent_s
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return silences

    path_silent_s, silent_s = asyncio.run(main())
    assert silent_s - path_silent_s >= SILENT_S
