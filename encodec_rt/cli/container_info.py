"""What encodec-rt info says of an .encodec file, without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from encodec_rt.bitstream.coding import Coding
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.bitstream.container_reader import Gap, PacketReader
from encodec_rt.errors import CodecError

Facts = dict[str, str]

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
        facts = {
            "kind": ".encodec, version 1",
            "model": reader.comments.get("MODEL") or "not named",
            "sha256 of encoder and codebooks": header.codes_sha256.hex(),
            "coding": _CODINGS[header.coding],
            **({"sha256 of coding": header.coder_sha256.hex()} if header.coding else {}),
            "audio": f"{header.sampling_rate} Hz, {header.channels} channel(s)",
            "frame": f"{header.hop} samples",
            **({"segments": f"{header.segment} samples, one every {header.stride}"}
               if header.segment else {}),
            "codebooks": f"{header.codebooks} of {header.codebook_size}",
            "start": header.start,
            "pre-skip": f"{header.pre_skip} samples",
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
        facts["links"] = f"{links}; what is above and the layers are those of the first"
    facts["length"] = f"{seconds:.3f} s, {samples} samples"
    facts["bytes"] = str(size)
    if samples:
        facts["bandwidth"] = f"{size * 8e-3 / seconds:.2f} kbps"
        facts["layers"] = ", ".join(_layers(header, sums))
    facts["packets"] = f"{sums.packets}, {sums.restarts} to begin at"
    if reader.foreign_pages:
        facts["other streams"] = f"{reader.foreign_pages} pages"
    state = "complete" if ended else "without an end: its writer was stopped, or it was cut off"
    if reader.problems:
        lost = sums.lost / header.sampling_rate
        state = f"damaged, {lost:.2f} s lost: {'; '.join(reader.problems[:5])}"
    facts["state"] = state
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


def _layers(header: StreamHeader, sums: _Sums) -> list[str]:
    """Each layer's codebooks, and its rate as coded and as packed."""
    texts = []
    for books, size in zip(header.layers, sums.layer_bytes, strict=True):
        coded = size * 8e-3 * header.sampling_rate / max(1, sums.samples + header.pre_skip)
        texts.append(f"{books} at {coded:.2f} kbps (packed {header.kbps(books):.2f})")
    return texts
