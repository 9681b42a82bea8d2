"""Audio to blocks of codes and back, with any codec, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from encodec_rt.bitstream.ecdc import Block
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, PacketError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.segments import Segment
from encodec_rt.streaming.weights import Start
from encodec_rt.types import Audio

FILE_BLOCK_FRAMES = 256
"""Frames per step: latency does not matter here, and a block reads each weight once."""


def encode_blocks(
    codec: Codec, audio: Iterable[Audio], *, bandwidth_kbps: float, start: Start = "exact"
) -> Iterator[Block]:
    """The codes of ``audio``, blocks [channels, n] at the model's rate, as they become ready.

    A model that streams in segments has no start to choose; "exact" is what it does.
    """
    if codec.segmented:
        _require_exact(start)
        segmented = codec.segment_encoder(bandwidth_kbps)
        for pcm in audio:
            yield from map(_as_block, segmented.push(pcm))
        yield from map(_as_block, segmented.flush())
        return
    encoder = codec.stream_encoder(bandwidth_kbps, start=start, block_frames=FILE_BLOCK_FRAMES)
    hop = codec.config.hop_length
    for pcm in audio:
        codes = encoder.push(pcm)
        if len(codes):
            yield Block(codes, None, len(codes) * hop)
    before = encoder.frames_out * hop
    codes = encoder.flush()
    if len(codes):
        yield Block(codes, None, encoder.samples_in - before)


def decode_blocks(
    codec: Codec, blocks: Iterable[Block], *, codebooks: int, start: Start = "exact"
) -> Iterator[Audio]:
    """The audio [channels, n] of ``blocks``, exactly as long as they say, as it becomes ready."""
    end = given = 0
    if codec.segmented:
        _require_exact(start)
        segmented = codec.segment_decoder()
        stride = codec.config.chunk_stride or 0
        for index, block in enumerate(blocks):
            end = max(end, index * stride + block.samples)
            pcm = _rows(segmented.push(Segment(block.codes, block.scale, block.samples)))
            given += pcm.shape[1]
            yield pcm[:, : pcm.shape[1] - max(0, given - end)]
        yield _rows(segmented.flush(samples=end))
        return
    decoder = codec.stream_decoder(
        bandwidth_for(codec.config, codebooks), start=start, block_frames=frames_at_once(start)
    )
    for block in blocks:
        end += block.samples
        pcm = _rows(decoder.push(block.codes))
        given += pcm.shape[1]
        yield pcm[:, : pcm.shape[1] - max(0, given - end)]
    yield _rows(decoder.flush(samples=end))


def frames_at_once(start: Start) -> int:
    """How many frames a file decoder takes in one step.

    Products over many frames round differently than over one, by one 16-bit step in about 10,000
    samples. So a stream that began "primed", as live ones do, is decoded frame by frame, as it was
    heard.
    """
    return 1 if start == "primed" else FILE_BLOCK_FRAMES


def bandwidth_for(config: EncodecConfig, codebooks: int) -> float:
    """The lowest bandwidth in kbps that takes ``codebooks``, or PacketError if none does."""
    for bandwidth in config.target_bandwidths:
        if config.codebooks_for(bandwidth) >= codebooks:
            return bandwidth
    raise PacketError(f"{codebooks} codebooks; this model has {config.num_quantizers}")


def _as_block(segment: Segment) -> Block:
    return Block(segment.codes, segment.scale, segment.samples)


def _rows(pcm: Audio) -> Audio:
    return pcm[None] if pcm.ndim == 1 else pcm


def _require_exact(start: Start) -> None:
    if start != "exact":
        raise ConfigError(
            f"start={start!r}; this model streams in segments, which begin as 'exact' does"
        )
