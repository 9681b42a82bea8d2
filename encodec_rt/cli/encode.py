"""encodec-rt encode: audio to an .ecdc file."""

from __future__ import annotations

from contextlib import ExitStack

from encodec_rt.cli.batch import AUDIO_SUFFIXES, Naming, several
from encodec_rt.cli.console import (
    CodecOptions,
    Meter,
    StartOption,
    check_output,
    check_start,
    detail,
    report,
    with_groups,
)
from encodec_rt.cli.file_options import (
    FromOption,
    RawOptions,
    StrictOption,
    ToOption,
    between,
    open_output,
    warn,
)

NAMING = Naming(".ecdc", AUDIO_SUFFIXES, frozenset({".ecdc"}))


def encode_file(
    source: str,
    target: str,
    options: CodecOptions,
    raw: RawOptions,
    start: StartOption = "exact",
    strict: StrictOption = False,
    begin: FromOption = 0.0,
    end: ToOption = None,
) -> None:
    """Encode audio to an .ecdc file, in memory that does not grow with its length."""
    from encodec_rt.audio import AudioReader
    from encodec_rt.bitstream.ecdc import EcdcWriter
    from encodec_rt.transcode import encode_blocks

    policy = check_start(start)
    check_output(target, suffix=".ecdc", force=options.force)
    with ExitStack() as stack:
        reader = stack.enter_context(AudioReader(source, raw=raw.format(), strict=strict))
        codec = options.load()
        config = codec.config
        books = config.codebooks_for(options.bandwidth)
        writer = stack.enter_context(EcdcWriter(config, codec.name, books))
        rate = config.sampling_rate
        heard = reader.blocks(rate, config.audio_channels)
        audio = Meter(
            between(heard, rate, begin, end),
            label="encoding",
            rate_hz=rate,
            total_s=reader.duration_s,
        )
        detail(f"{reader.name}: {reader.description}, {reader.rate_hz} Hz")
        for block in encode_blocks(codec, audio, bandwidth_kbps=options.bandwidth, start=policy):
            writer.write(block.codes, block.scale)
        with open_output(target, force=options.force) as file:
            size = writer.finish(file, audio.samples)
    kbps = size * 8e-3 / audio.seconds if audio.samples else 0.0
    report(f"{audio.summary()}: {books} codebooks, {size} bytes ({kbps:.2f} kbps)")
    warn(reader)


encode = with_groups(several(NAMING)(encode_file))
