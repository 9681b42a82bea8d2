"""What encodec-rt info says of an .encodec file, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from encodec_rt.bitstream.coding import Coding
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_reader import Gap, PacketReader
from encodec_rt.cli.facts import Described, Facts, described_audio, described_codebooks
from encodec_rt.errors import CodecError

MAX_PROBLEMS = 5
"""That are told of a damaged file."""

_CODINGS = {
    Coding.RAW: "packed",
    Coding.TABLES: "tables",
    Coding.LANGUAGE_MODEL: "language model",
}


@dataclass
class _Sums:
    """Counts of one link."""

    packets: int = 0
    restarts: int = 0
    samples: int = 0
    lost: int = 0
    layer_bytes: list[int] = field(default_factory=list)


def container_facts(path: Path) -> Facts:
    """Everything that the streams of a file say about themselves, and whether they are complete."""
    with path.open("rb") as file:
        reader = PacketReader(file, salvage=True)
        header = reader.header
        facts: Facts = {
            "kind": ".encodec, version 1",
            "model": reader.comments.get("MODEL") or "not named",
            "sha256 of encoder and codebooks": header.codes_sha256.hex(),
            "coding": _CODINGS[header.coding],
            **({"sha256 of coding": header.coder_sha256.hex()} if header.coding else {}),
            "audio": described_audio(header.sampling_rate, header.channels),
            "frame": Described(f"{header.hop} samples", {"frame_samples": header.hop}),
            **({"segments": _segments(header)} if header.segment else {}),
            "codebooks": described_codebooks(header.codebooks, header.codebook_size),
            "start": header.start,
            "pre-skip": Described(
                f"{header.pre_skip} samples", {"pre_skip_samples": header.pre_skip}
            ),
            "written by": reader.comments.vendor,
        }  # fmt: skip
        for name, value in reader.comments.fields:
            if name.upper() != "MODEL":
                facts[name.upper()] = value
        sums, links, samples, ended = _counted(reader), 1, 0, reader.ended
        samples = sums.samples
        while reader.next_link():
            more = _counted(reader)
            links, samples = links + 1, samples + more.samples
            ended, sums.lost = ended and reader.ended, sums.lost + more.lost
    size, seconds = path.stat().st_size, samples / header.sampling_rate
    if links > 1:
        text = f"{links}; what is above and the layers are those of the first"
        facts["links"] = Described(text, {"links": links})
    facts["length"] = Described(
        f"{seconds:.3f} s, {samples} samples", {"length_s": seconds, "samples": samples}
    )
    facts["bytes"] = size
    if samples:
        kbps = size * 8e-3 / seconds
        facts["bandwidth"] = Described(f"{kbps:.2f} kbps", {"bandwidth_kbps": kbps})
        facts["layers"] = _layers(header, sums)
    facts["packets"] = Described(
        f"{sums.packets}, {sums.restarts} to begin at",
        {"packets": sums.packets, "restarts": sums.restarts},
    )
    if reader.foreign_pages:
        facts["other streams"] = Described(
            f"{reader.foreign_pages} pages", {"pages_of_other_streams": reader.foreign_pages}
        )
    facts["state"] = (
        "complete" if ended else "without an end: its writer was stopped, or it was cut off"
    )
    if reader.problems:
        lost = sums.lost / header.sampling_rate
        state = f"damaged, {lost:.2f} s lost: {_counted_problems(reader.problems)}"
        facts["state"] = Described(state, {"state": state, "lost_s": lost})
    return facts


def container_samples(path: Path) -> int | None:
    """How many samples a file decodes to, from its packets; None if that cannot be told."""
    with path.open("rb") as file:
        try:
            reader = PacketReader(file)
            samples = _counted(reader).samples
            while reader.next_link():
                samples += _counted(reader).samples
        except CodecError:
            # Decoding it will report what is wrong.
            return None
    return samples


def _counted(reader: PacketReader) -> _Sums:
    sums = _Sums(layer_bytes=[0] * len(reader.header.layers))
    begin = None
    for item in reader:
        begin = item.start if begin is None else begin
        sums.samples = item.end - begin
        if isinstance(item, Gap):
            sums.lost += item.end - item.start
            continue
        sums.packets += 1
        sums.restarts += item.packet.restart
        for index, layer in enumerate(item.packet.layers):
            sums.layer_bytes[index] += len(layer.data)
    sums.samples = max(0, sums.samples - reader.header.pre_skip)
    return sums


def _segments(header: StreamHeader) -> Described:
    return Described(
        f"{header.segment} samples, one every {header.stride}",
        {"segment_samples": header.segment, "stride_samples": header.stride},
    )


def _layers(header: StreamHeader, sums: _Sums) -> Described:
    """Each layer's codebooks, and its rate as coded and as packed."""
    texts, values = [], []
    for books, size in zip(header.layers, sums.layer_bytes, strict=True):
        coded = size * 8e-3 * header.sampling_rate / max(1, sums.samples + header.pre_skip)
        packed = header.kbps(books)
        texts.append(f"{books} at {coded:.2f} kbps (packed {packed:.2f})")
        values.append({"codebooks": books, "kbps": coded, "packed_kbps": packed})
    return Described(", ".join(texts), {"layers": values})


def _counted_problems(problems: Sequence[str]) -> str:
    """The first few different ones, and how often each was met."""
    counts = Counter(problems).most_common(MAX_PROBLEMS)
    return "; ".join(text if count == 1 else f"{text} ({count} times)" for text, count in counts)
