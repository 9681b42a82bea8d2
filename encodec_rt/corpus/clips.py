"""A clip of a corpus, and its audio for a model: read as needed, never held in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from encodec_rt.audio import AudioReader
from encodec_rt.audio.excerpt import excerpt
from encodec_rt.config import EncodecConfig
from encodec_rt.corpus.loudness import LoudnessMeter, gain_for
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.types import Audio

ChannelChoice = Literal["mix", "each"]


@dataclass(frozen=True, eq=False)
class CorpusClip:
    """What a clip is called, where its bytes are, and which part of them is wanted.

    ``id`` is unique in the corpus. ``open`` returns a path, or a file object that the reader
    closes; what it raises is the clip's error. ``meta`` are the columns that go with it.
    """

    id: str
    source: str
    open: Callable[[], str | Path | BinaryIO]
    begin_s: float = 0.0
    end_s: float | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Treatment:
    """How clips become a model's audio.

    ``channels`` "mix" mixes a clip to the model's channels, "each" makes a clip of every channel.
    ``loudness_lufs`` is the loudness (ITU-R BS.1770) that each clip is brought to, or None.
    ``strict`` refuses damaged audio.
    """

    channels: ChannelChoice = "mix"
    loudness_lufs: float | None = None
    strict: bool = False

    def check(self, config: EncodecConfig) -> None:
        """Raise ConfigError for choices that a model of ``config`` does not allow."""
        if self.channels not in ("mix", "each"):
            raise ConfigError(f"channels={self.channels!r}; accepted: mix, each")
        if self.channels == "each" and config.audio_channels != 1:
            raise ConfigError(
                f"channels='each' makes mono clips, and this model takes {config.audio_channels} "
                "channels; use 'mix'"
            )
        if self.loudness_lufs is not None and not -70 < self.loudness_lufs < 0:
            raise ConfigError(f"loudness of {self.loudness_lufs:g} LUFS; accepted: -70 to 0")


class Feed:
    """Iterates over the audio [channels, n] of a clip, or of one ``channel`` of it.

    ``id`` names what comes out. ``seconds`` counts what was decoded, and ``warnings`` says what was
    wrong with it. Raises CodecError and OSError, as AudioReader does.
    """

    def __init__(
        self,
        clip: CorpusClip,
        treatment: Treatment,
        config: EncodecConfig,
        channel: int | None = None,
    ) -> None:
        self.clip = clip
        self.id = clip.id if channel is None else f"{clip.id}#{channel}"
        self.seconds = 0.0
        self.warnings: list[str] = []
        self._treatment, self._config, self._channel = treatment, config, channel

    def __iter__(self) -> Iterator[Audio]:
        """The audio, from the start."""
        if self._gain == 1.0:
            yield from self._blocks()
            return
        for block in self._blocks():
            yield np.asarray(block * np.float32(self._gain))

    @cached_property
    def _gain(self) -> float:
        """The gain to the wanted loudness, for which the clip is read once before."""
        wanted = self._treatment.loudness_lufs
        if wanted is None:
            return 1.0
        meter = LoudnessMeter(self._config.sampling_rate)
        for block in self._blocks():
            meter.add(block)
        return gain_for(meter, wanted)

    def _blocks(self) -> Iterator[Audio]:
        rate, wanted = self._config.sampling_rate, self._config.audio_channels
        with ExitStack() as stack:
            reader = open_reader(self.clip, stack, strict=self._treatment.strict)
            try:
                if self._channel is None:
                    blocks = reader.blocks(rate, wanted)
                else:
                    blocks = _only(reader, rate, self._channel)
                yield from _window(blocks, rate, self.clip)
            finally:
                self.seconds, self.warnings = reader.seconds, reader.warnings


def open_reader(clip: CorpusClip, stack: ExitStack, *, strict: bool = False) -> AudioReader:
    """A reader of the clip, which ``stack`` closes with what was opened for it."""
    opened = clip.open()
    if not isinstance(opened, (str, Path)):
        stack.callback(opened.close)
    return stack.enter_context(AudioReader(opened, strict=strict, name=clip.source))


def feeds(clip: CorpusClip, treatment: Treatment, config: EncodecConfig) -> list[Feed]:
    """The clip as it is, or once for each of its channels. Raises as AudioReader does."""
    if treatment.channels == "mix":
        return [Feed(clip, treatment, config)]
    with ExitStack() as stack:
        count = open_reader(clip, stack).channels
    return [Feed(clip, treatment, config, channel) for channel in range(count)]


def _only(reader: AudioReader, rate_hz: int, channel: int) -> Iterator[Audio]:
    """One channel [1, n] of what ``reader`` has."""
    count = reader.channels
    for block in reader.blocks(rate_hz, count):
        if len(block) != count:
            raise InputError(
                f"{reader.name} changes from {count} channels to {len(block)}; use channels='mix'"
            )
        yield block[channel : channel + 1]


def _window(blocks: Iterator[Audio], rate_hz: int, clip: CorpusClip) -> Iterator[Audio]:
    """From the clip's start to its end. Raises InputError if the file ends before."""
    read = yield from excerpt(blocks, rate_hz, clip.begin_s, clip.end_s)
    if 0 < round(clip.begin_s * rate_hz) >= read:
        raise InputError(
            f"{clip.source} ends after {read / rate_hz:.2f} s, and the clip begins at "
            f"{clip.begin_s:g} s"
        )
