"""How good does the default model sound, beside Opus on the same held-out recordings?

    python -m benches.quality --data DATA/packed --opus-tools FOLDER

DATA is what ``encodec-rt data fetch`` and ``data index`` made; nothing that is scored here was seen
in training. ``opusenc`` and ``opusdec`` come from Debian's opus-tools, at a hard constant rate. The
result is a JSON in benches/results and, with --picture, a PNG of quality against kbps.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from benches.record import RESULTS, Record
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.quality import Kind, score
from encodec_rt.training.data import IndexedSource, load_index

RATE = 24_000
CLIP_S = 5.0
LEVEL_DBFS = -22.0
OPUS_KBPS = (6, 9, 12, 16, 24)
UNSEEN = {"asterisk-core-sounds-it-g722": 4, "tuxpaint-stamps-default/da": 4}
CLIPS = {"speech": 2, "music": 2}
METRICS = ("si_sdr_db", "pesq_wb", "estoi", "zimtohrli", "visqol", "log_spectral_distance_db")

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """One clip to score: where it comes from, whether its voice is unseen, and its audio."""

    name: str
    kind: Kind
    unseen: bool
    audio: Samples


def held_out_clips(sources: Sequence[IndexedSource], folder: Path) -> list[HeldOut]:
    """Clips of 5 s of held-out files' active audio, one after another, at one level."""
    found = []
    for source in sources:
        packed = np.memmap(folder / f"{source.name}.s16", dtype="<i2", mode="r")
        voices = defaultdict(list)
        for clip in source.clips:
            if clip.split == "held-out":
                unseen = clip.speaker if clip.speaker in UNSEEN else ""
                voices[unseen].append(clip)
        for unseen, clips in sorted(voices.items()):
            wanted = UNSEEN[unseen] if unseen else CLIPS[source.kind]
            size = int(CLIP_S * RATE)
            joined: list[Samples] = []
            for clip in clips[:: max(1, len(clips) // (8 * wanted))]:
                gain = np.float32(10 ** ((LEVEL_DBFS - clip.level_dbfs) / 20) / 32768)
                for start, length in clip.spans:
                    first = clip.start + start
                    joined.append(packed[first : first + length] * gain)
            whole = np.concatenate(joined)
            count = min(wanted, len(whole) // size)
            starts = np.linspace(0, max(0, len(whole) - size), count).astype(int)
            for number, start in enumerate(starts):
                cut = whole[start : start + size]
                peak = float(np.abs(cut).max())
                cut = cut * np.float32(min(1.0, 0.95 / peak))
                name = f"{unseen or source.name}#{number}"
                found.append(HeldOut(name, source.kind, bool(unseen), cut))
    return found


def through_model(model: EncodecModel, kbps: float | None) -> Callable[[Samples], Samples]:
    """The offline model as a function of audio; no ``kbps`` leaves the quantiser out."""

    @torch.no_grad()
    def run(audio: Samples) -> Samples:
        values = torch.from_numpy(audio)[None, None]
        latents = model.encoder(values)
        if kbps is not None:
            latents = model.quantizer.decode(model.quantizer.encode(latents, kbps))
        decoded: Samples = model.decoder(latents)[0, 0, : len(audio)].numpy()
        return decoded

    return run


def through_opus(tools: Path, kbps: int) -> Callable[[Samples], Samples]:
    """Opus at a hard constant rate, as a function of audio."""

    def run(audio: Samples) -> Samples:
        with tempfile.TemporaryDirectory() as folder:
            wave, packed, out = (Path(folder) / name for name in ("a.wav", "a.opus", "b.wav"))
            soundfile.write(wave, audio, RATE)
            rate = ["--bitrate", str(kbps), "--hard-cbr"]
            for command in (
                [str(tools / "opusenc"), "--quiet", *rate, str(wave), str(packed)],
                [str(tools / "opusdec"), "--quiet", "--rate", str(RATE), str(packed), str(out)],
            ):
                subprocess.run(command, check=True, capture_output=True)
            decoded: Samples = soundfile.read(out, dtype="float32")[0]
        return decoded

    return run


@torch.no_grad()
def codebook_use(model: EncodecModel, clips: Sequence[HeldOut]) -> dict[str, Any]:
    """Per codebook, the share of entries that the clips use and the bits of a code's entropy."""
    streams = [
        model.quantizer.encode(model.encoder(torch.from_numpy(clip.audio)[None, None]))
        for clip in clips
    ]
    codes = torch.cat([stream[:, 0] for stream in streams], 1)
    shares, bits = [], []
    for level in codes:
        counts = torch.bincount(level, minlength=model.config.codebook_size).double()
        chances = counts[counts > 0] / counts.sum()
        shares.append(round(len(chances) / len(counts), 4))
        bits.append(round(float(-(chances * chances.log2()).sum()), 3))
    return {"frames": codes.shape[1], "used_share": shares, "entropy_bits": bits}


def means(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of each score over the clips that have it."""
    found = {}
    for name in METRICS:
        values = [value for row in rows if (value := row[name]) is not None]
        if values:
            found[name] = round(float(np.mean(values)), 4)
    return found


def draw(record: Record, picture: Path) -> None:
    """Quality against kbps, ours and Opus, speech above and music below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = ("si_sdr_db", "pesq_wb", "estoi", "zimtohrli", "visqol")
    figure = Figure(figsize=(15, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown), squeeze=False)
    for row, kind in zip(axes, ("speech", "music"), strict=True):
        for axis, metric in zip(row, shown, strict=True):
            for codec in ("encodec_rt", "opus"):
                points = [
                    (float(str(case.case["kbps"])), case.values[metric])
                    for case in record.cases
                    if case.case["kind"] == kind
                    and case.case["codec"] == codec
                    and case.case["kbps"] is not None
                    and metric in case.values
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", label=codec)
            axis.set_title(f"{kind}: {metric}", fontsize=9)
            axis.set_xlabel("kbps", fontsize=8)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=8, frameon=False)
            else:
                axis.set_visible(False)
    figure.savefig(picture, format="png", dpi=100)


def main() -> None:
    """Score the model and Opus, print the means, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--opus-tools", type=Path, help="folder of opusenc and opusdec")
    parser.add_argument("--visqol", action="store_true")
    parser.add_argument("--most", type=int, default=0, help="score only so many clips of each kind")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--keep", action="store_true", help="write the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = held_out_clips(load_index(options.data), options.data)
    model = EncodecModel.from_pretrained(options.model)
    codecs: list[tuple[str, float | None, Callable[[Samples], Samples]]] = [
        ("encodec_rt", kbps, through_model(model, kbps)) for kbps in model.config.target_bandwidths
    ]
    codecs.append(("encodec_rt", None, through_model(model, None)))
    if options.opus_tools:
        codecs += [("opus", kbps, through_opus(options.opus_tools, kbps)) for kbps in OPUS_KBPS]
    record = Record("quality", folder=RESULTS if options.keep else None)
    for kind in ("speech", "music"):
        chosen = [clip for clip in clips if clip.kind == kind]
        if options.most:
            chosen = chosen[:: -(-len(chosen) // options.most)]
        for codec, kbps, run in codecs:
            rows = {
                clip.name: score(
                    clip.audio, run(clip.audio), RATE, kind=clip.kind, visqol=options.visqol
                ).as_dict()
                for clip in chosen
            }
            unseen = [rows[clip.name] for clip in chosen if clip.unseen]
            values = {**means(list(rows.values())), "clips": len(rows)}
            values |= {f"unseen_{name}": value for name, value in means(unseen).items()}
            case = {"kind": kind, "codec": codec, "kbps": kbps}
            record.add(case, values={**values, "per_clip": rows})
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in METRICS if name in values)
            print(f"{kind:<7} {codec:<11} {kbps or 'unquantised'!s:<12} {shown}", flush=True)
    use = codebook_use(model, clips)
    record.add({"kind": "codebooks", "codec": "encodec_rt", "kbps": None}, values=use)
    print(f"codebooks: least used share {min(use['used_share'])}, entropy {use['entropy_bits']}")
    if options.picture:
        draw(record, options.picture)
    if options.keep:
        print(record.write())


if __name__ == "__main__":
    main()
