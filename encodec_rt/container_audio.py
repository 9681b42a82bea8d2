"""Audio of ``.encodec`` streams: checking against a codec, decoding, seeking, filling gaps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from encodec_rt.audio import KEPT_TAGS
from encodec_rt.bitstream.coding import (
    CodeCoder,
    Coding,
    RawCoder,
    TableCoder,
    coder_for,
    tables_for_model,
)
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_reader import (
    CodeBlock,
    Gap,
    Located,
    PacketReader,
    read_codes,
    skip_to,
)
from encodec_rt.bitstream.ecdc import Block
from encodec_rt.errors import ConfigError, InputError, PacketError, WeightsError
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.files import lm_by_hash, lm_for_model
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.pcm import sample_at
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.streams import StreamDecoder
from encodec_rt.streaming.weights import Start
from encodec_rt.transcode import bandwidth_for, decode_blocks, frames_at_once
from encodec_rt.types import Audio

CodingChoice = Literal["auto", "raw", "tables", "lm"]
MAX_TAG = 1000
"""The most characters of a tag that a container keeps."""
MAX_CONCEALED_FRAMES = 75
"""The most consecutive lost frames that the decoder conceals; after more it restarts."""
MAX_SILENCE_S = 60.0
"""The longest gap that is filled, since positions in a file may claim any length."""


def header_for(codec: Codec, codebooks: int, *, start: Start) -> StreamHeader:
    """The header of a stream of ``codec``. Raises ConfigError for a model it cannot describe."""
    if codec.segmented and codec.config.chunk_length is None:
        raise ConfigError(
            "this model encodes a clip as one piece, which .encodec cannot hold; write .ecdc"
        )
    made_by = bytes.fromhex(codec.codes_sha256)
    return StreamHeader.for_model(codec.config, codebooks, start=start, codes_sha256=made_by)


def container_tags(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """The fields of a container for the title, artist and the like of an audio file."""
    known = {name.lower(): text for name, text in tags.items()}
    return [
        (name.upper(), known[name][:MAX_TAG].encode("utf-8", "replace").decode())
        for name in KEPT_TAGS
        if known.get(name)
    ]


def coder_of(
    header: StreamHeader,
    folder: Path | None = None,
    *,
    wanted: CodingChoice = "auto",
    lm: Path | None = None,
) -> CodeCoder:
    """The coder of a new stream; "auto" takes the best that its model has.

    Raises WeightsError if the wanted coder is not available.
    """
    if wanted == "lm" or (wanted == "auto" and lm is not None):
        model = IntegerLm.load(lm) if lm else lm_for_model(header.codes_sha256, folder)
        if model is None:
            raise WeightsError("there is no language model for this model; name one with --lm")
        if model.config.layers[: len(header.layers)] != header.layers:
            raise WeightsError(
                f"the language model has layers of {model.config.layers}, and the stream of "
                f"{header.layers}; choose one of the model's bandwidths"
            )
        return LmCoder(model)
    if wanted == "auto":
        model = lm_for_model(header.codes_sha256, folder)
        if model is not None and model.config.layers[: len(header.layers)] == header.layers:
            return LmCoder(model)
    if wanted != "raw":
        tables = tables_for_model(header.codes_sha256, folder)
        if tables is not None and tables.counts.shape[0] >= header.codebooks:
            return TableCoder(tables)
        if wanted == "tables":
            raise WeightsError("there are no code tables for this model; --coding raw needs none")
    return RawCoder(header.codebook_size)


class ContainerAudio:
    """Iterates over the audio [channels, n] of a file, from ``begin_s`` to ``end_s``.

    The links of a chain follow one another. With ``salvage`` short gaps are concealed and long ones
    silent; ``lost`` counts their samples. ``unfinished`` is set if a stream had no last page.
    Raises PacketError for a stream that ``codec`` cannot decode, and WeightsError if the coder is
    not available.
    """

    def __init__(
        self,
        codec: Codec,
        file: BinaryIO,
        *,
        begin_s: float = 0.0,
        end_s: float | None = None,
        salvage: bool = False,
        folder: Path | None = None,
        lm: Path | None = None,
    ) -> None:
        """Read the headers of the first link."""
        if begin_s < 0 or (end_s is not None and end_s <= begin_s):
            raise InputError(f"from {begin_s} s to {end_s} s; the second has to be after the first")
        rate = codec.config.sampling_rate
        self._codec = codec
        self._salvage = salvage
        self._folder = folder
        self._lm = lm
        self._begin = sample_at(begin_s, rate)
        self._end = None if end_s is None else sample_at(end_s, rate)
        self.lost = 0
        self.unfinished = False
        self.reader = PacketReader(file, salvage=salvage)
        self._check()

    def __iter__(self) -> Iterator[Audio]:
        """The audio as it is ready."""
        before = 0
        while True:
            yield from self._link(before)
            before += self._length
            if self._end is not None and before >= self._end:
                return
            if not self.reader.next_link():
                break
            self._check()
        if before and before <= self._begin:
            rate = self._codec.config.sampling_rate
            raise InputError(
                f"from {self._begin / rate:g} s; the stream ends after {before / rate:.2f} s"
            )

    def _check(self) -> None:
        header, codec = self.reader.header, self._codec
        ours = bytes.fromhex(codec.codes_sha256)
        # The earliest files carry the hash of all weights, decoder included.
        if header.codes_sha256 not in (ours, bytes.fromhex(codec.weights_sha256)):
            named = self.reader.comments.get("MODEL") or "another model"
            raise PacketError(
                f"the stream was made by {named} with weights {header.codes_sha256.hex()[:16]}, "
                f"but these are {ours.hex()[:16]}; give the right ones with --model"
            )
        wanted = header_for(codec, codec.config.num_quantizers, start="exact")
        for field in ("sampling_rate", "channels", "hop", "codebook_size", "segment", "stride"):
            if getattr(header, field) != getattr(wanted, field):
                raise PacketError(
                    f"the stream has {field} {getattr(header, field)}, and the model "
                    f"has {getattr(wanted, field)}"
                )
        bandwidth_for(codec.config, header.codebooks)
        if header.coding is Coding.LANGUAGE_MODEL:
            self._coder: CodeCoder = LmCoder(
                lm_by_hash(header.coder_sha256, self._folder, self._lm)
            )
            return
        self._coder = coder_for(
            header.coding, header.coder_sha256, header.codebook_size, folder=self._folder
        )

    def _link(self, before: int) -> Iterator[Audio]:
        """The wanted audio of a link that begins ``before`` samples after the file's start."""
        header, self._length = self.reader.header, 0
        items = iter(self.reader)
        first = next(items, None)
        if first is None:
            self.unfinished |= not self.reader.ended
            return
        zero = first.start + header.pre_skip
        begin = zero + max(0, self._begin - before)
        end = None if self._end is None else zero + self._end - before
        items = itertools.chain([first], items)
        start: Start = header.start  # type: ignore[assignment]
        if begin > zero:
            items = skip_to(items, max(first.start, begin - header.pre_roll))
            head = next(items, None)
            if head is None:
                self._length = self.reader.position - zero
                return
            start = start if head.start == first.start else "zero"
            items = itertools.chain([head], items)
            position = head.start
        else:
            position = first.start
        if end is not None:
            items = itertools.takewhile(lambda item: item.start < end, items)
        for pcm in self._sound(items, start):
            skipped = min(pcm.shape[1], max(0, begin - position))
            beyond = 0 if end is None else max(0, position + pcm.shape[1] - end)
            position += pcm.shape[1]
            yield pcm[:, skipped : max(skipped, pcm.shape[1] - beyond)]
        self._length = max(0, self.reader.position - zero)
        self.unfinished |= end is None and not self.reader.ended

    def _sound(self, items: Iterator[Located | Gap], start: Start) -> Iterator[Audio]:
        blocks = read_codes(items, self.reader.header, self._coder, salvage=self._salvage)
        pending = next(blocks, None)
        while pending is not None:
            if isinstance(pending, Gap):
                yield from self._silence(pending)
                pending = next(blocks, None)
            else:
                run = _Run(pending, blocks, self.reader.header)
                decode = self._segments if self._codec.segmented else self._frames
                yield from decode(run, start)
                pending = run.left
            start = "exact" if self._codec.segmented else "zero"

    def _segments(self, run: Iterable[CodeBlock | Gap], start: Start) -> Iterator[Audio]:
        blocks = (
            Block(item.codes, item.scale, item.end - item.start)
            for item in run
            if isinstance(item, CodeBlock)
        )
        yield from decode_blocks(self._codec, blocks, codebooks=self.reader.header.codebooks)

    def _frames(self, run: Iterable[CodeBlock | Gap], start: Start) -> Iterator[Audio]:
        decoder = self._codec.stream_decoder(
            bandwidth_for(self._codec.config, self.reader.header.codebooks),
            start=start,
            block_frames=frames_at_once(start),
        )
        end = given = 0
        for item in run:
            end += item.end - item.start
            for pcm in self._pushed(decoder, item):
                rows = np.atleast_2d(pcm)
                given += rows.shape[1]
                yield rows[:, : max(0, rows.shape[1] - max(0, given - end))]
        yield np.atleast_2d(decoder.flush(samples=end))

    def _pushed(self, decoder: StreamDecoder, item: CodeBlock | Gap) -> Iterator[Audio]:
        if isinstance(item, CodeBlock):
            yield decoder.push(item.codes)
            return
        self.lost += item.end - item.start
        for _ in range(_frames_of(item, self.reader.header)):
            yield decoder.push(None)

    def _silence(self, gap: Gap) -> Iterator[Audio]:
        self.lost += gap.end - gap.start
        rate = self._codec.config.sampling_rate
        left = min(gap.end - gap.start, round(MAX_SILENCE_S * rate))
        while left > 0:
            size = min(left, rate)
            yield np.zeros((self._codec.config.audio_channels, size), np.float32)
            left -= size


class _Run:
    """Blocks for one decoder, from ``first`` on; ``left`` is the first that it cannot take."""

    def __init__(
        self, first: CodeBlock, items: Iterator[CodeBlock | Gap], header: StreamHeader
    ) -> None:
        self.left: CodeBlock | Gap | None = None
        self._first = first
        self._items = items
        self._header = header

    def __iter__(self) -> Iterator[CodeBlock | Gap]:
        yield self._first
        for item in self._items:
            if isinstance(item, Gap):
                frames = _frames_of(item, self._header)
                if self._header.segment or frames > MAX_CONCEALED_FRAMES:
                    self.left = item
                    return
            yield item


def _frames_of(gap: Gap, header: StreamHeader) -> int:
    return -(-(gap.end - gap.start) // header.hop)
