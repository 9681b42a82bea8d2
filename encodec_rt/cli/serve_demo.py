"""What ``encodec-rt serve --demo`` shows: a server, and clients that all talk to it at once."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from encodec_rt.cli.console import say
from encodec_rt.errors import LinkError
from encodec_rt.pcm import to_int16
from encodec_rt.types import Audio

if TYPE_CHECKING:
    from encodec_rt.client.load import Talk
    from encodec_rt.streaming.codec import Codec

CLIENTS = 6
SECONDS = 6.0


@contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """A server in its own process; yields its address. Raises LinkError if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "encodec_rt", "serve", "--port", "0", "--state", folder]
        running = subprocess.Popen(
            [*command, "--drain-s", "0", *arguments], stderr=subprocess.PIPE, text=True
        )
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            found = re.search(r" on (http://127\.0\.0\.1:\d+);", line)
            if found is None:
                raise LinkError(f"the server did not start: {line.strip()}")
            yield found[1]
        finally:
            running.terminate()
            running.communicate()


def demo(codec: Codec, bandwidth_kbps: float, arguments: list[str]) -> None:
    """Let clients talk for some seconds, and print what came of each."""
    from encodec_rt.client.load import talk_at_once

    clips = _clips(codec.sampling_rate)
    with server([*arguments, "--sessions", str(CLIENTS)]) as url:
        say(f"{CLIENTS} clients talk to {url} for {SECONDS:g} s")
        talks = asyncio.run(
            talk_at_once(url, clips, rate_hz=codec.sampling_rate, bandwidth_kbps=bandwidth_kbps)
        )
    pairs = zip(clips, talks, strict=True)
    _print(talks, [_differing(codec, bandwidth_kbps, clip, talk) for clip, talk in pairs])


def _clips(rate_hz: int) -> list[Audio]:
    from encodec_rt.audio import AudioReader

    clip = resources.files("encodec_rt") / "assets" / "speech_en.flac"
    with AudioReader(str(clip)) as reader:
        speech = np.concatenate(list(reader.blocks(rate_hz, 1)), axis=1)[0]
    length = int(SECONDS * rate_hz)
    # Rounded to 16 bits, so that the codes can be compared.
    speech = to_int16(speech) / np.float32(32768)
    return [np.resize(np.roll(speech, -at * rate_hz // 2), length) for at in range(CLIENTS)]


def _differing(codec: Codec, bandwidth_kbps: float, clip: Audio, talk: Talk) -> int | None:
    """Frames whose codes are not those of a stream; None where frames were dropped on the way."""
    if talk.refused or talk.dropped or talk.resumed:
        return None
    stream = codec.stream_encoder(bandwidth_kbps)
    wanted = np.concatenate([stream.push(clip), stream.flush()])
    given = np.stack(talk.codes)
    return int((given != wanted[: len(given)]).any(axis=1).sum()) + len(wanted) - len(given)


def _print(talks: list[Talk], differing: list[int | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("client", "frames", "p50 ms", "p99 ms", "dropped", "codes that differ")
    for number, (talk, wrong) in enumerate(zip(talks, differing, strict=True), 1):
        if talk.refused or not talk.round_trip_ms:
            table.add_row(str(number), "-", "-", "-", "-", talk.refused or "nothing came")
            continue
        middle, late = np.percentile(talk.round_trip_ms, (50, 99))
        compared = "not compared" if wrong is None else str(wrong)
        row = (number, talk.sent, f"{middle:.1f}", f"{late:.1f}", talk.dropped, compared)
        table.add_row(*map(str, row))
    Console().print(table)
