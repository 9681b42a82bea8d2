"""The quality of the default model, beside Opus, on held-out recordings.

    python -m benches.quality --data DATA/packed --opus-tools FOLDER

DATA is the folder of ``encodec-rt data fetch`` and ``data index``; nothing that is scored here was
seen in training. ``opusenc`` and ``opusdec`` come from Debian's opus-tools and run at a hard
constant bitrate. With --keep a JSON is written to benches/results, and with --picture a PNG of
quality against kbps.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benches.bootstrap import interval, paired_difference
from benches.environment import Json
from benches.held_out import RATE, HeldOut, Samples, held_out_clips, in_a_room, noisy
from benches.record import RESULTS, Record
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.quality import BANDS_KHZ, band_levels_db, band_name, score
from encodec_rt.training.tables import load_index

OPUS_KBPS = (6, 9, 12, 16, 24)
METRICS = (
    "si_sdr_db",
    "pesq_wb",
    "estoi",
    "zimtohrli",
    "visqol",
    "log_spectral_distance_db",
    *(band_name(low, high) for low, high in BANDS_KHZ),
)
SHOWN = METRICS[:6]
SURROUNDINGS: dict[str, Callable[[HeldOut], HeldOut]] = {
    "speech": lambda clip: clip,
    "music": lambda clip: clip,
    "noisy speech": noisy,
    "reverberant speech": in_a_room,
}

KINDS = tuple(SURROUNDINGS)

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Tested:
    """A codec at one bitrate: its name in the record, and a function from audio to audio."""

    codec: str
    kbps: float | None
    run: Callable[[Samples], Samples]


def through_model(model: EncodecModel, kbps: float | None) -> Callable[[Samples], Samples]:
    """The offline model as a function of audio; unquantised if ``kbps`` is None."""

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
    """Opus at a hard constant bitrate, as a function of audio."""

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
    """For each codebook, the share of entries that the clips use, and the entropy in bits."""
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


def scores(clip: HeldOut, decoded: Samples, *, visqol: bool) -> dict[str, float | None]:
    """All scores of a clip by name, and the level of each band relative to the original."""
    found = score(clip.audio, decoded, RATE, kind=clip.kind, visqol=visqol).as_dict()
    return found | band_levels_db(clip.audio, decoded[: len(clip.audio)], RATE)


def common(name: str, *rows: Sequence[Row]) -> list[list[float]]:
    """The values of score ``name`` in each of ``rows``, for the clips where all have one."""
    kept: list[list[float]] = [[] for _ in rows]
    for clip in zip(*rows, strict=True):
        values = [row[name] for row in clip]
        if all(value is not None for value in values):
            for own, value in zip(kept, values, strict=True):
                own.append(float(value))
    return kept


def means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each score over the clips that have it."""
    return {
        name: round(float(np.mean(values)), 4)
        for name in METRICS
        if (values := common(name, rows)[0])
    }


def intervals(rows: Sequence[Row]) -> dict[str, Json]:
    """The 95 % confidence interval of the mean of each score."""
    return {name: list(interval(v)) for name in METRICS if (v := common(name, rows)[0])}


def differences(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Json]:
    """The mean difference of each score on the same clips, with its 95 % confidence interval."""
    pairs = {name: common(name, ours, theirs) for name in METRICS}
    return {name: list(paired_difference(a, b)) for name, (a, b) in pairs.items() if a}


_TITLES = {
    "si_sdr_db": ("SI-SDR", "dB"),
    "pesq_wb": ("PESQ wide-band", "opinion score"),
    "estoi": ("ESTOI", "share"),
    "zimtohrli": ("Zimtohrli", "opinion score"),
    "visqol": ("ViSQOL", "opinion score"),
}
_LABELS = {"encodec_rt": "encodec_rt", "opus": "Opus", "against": "the model compared with"}


def draw(record: Record, picture: Path) -> None:
    """Draw quality against kbps, ours and Opus, with a row of panels for each kind of audio."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(str(c.case["kind"]) for c in record.cases if "clips" in c.values))
    figure = Figure(figsize=(15, 3 * len(kinds)), layout="constrained")
    figure.suptitle("Quality of held-out audio; higher is better", fontsize=12)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(_TITLES), squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for axis, (metric, (title, unit)) in zip(row, _TITLES.items(), strict=True):
            for codec, label in _LABELS.items():
                points = _points(record, kind, codec, metric)
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
            axis.set_title(f"{title}, {kind}", fontsize=9)
            axis.set_xlabel("kbps", fontsize=8)
            axis.set_ylabel(unit, fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
            if not axis.lines:
                axis.set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(picture, format="png", dpi=100)


def _points(record: Record, kind: str, codec: str, metric: str) -> list[tuple[float, float]]:
    return [
        (float(str(case.case["kbps"])), float(str(case.values[metric])))
        for case in record.cases
        if case.case["kind"] == kind
        and case.case["codec"] == codec
        and case.case["kbps"] is not None
        and metric in case.values
    ]


def codecs(options: argparse.Namespace, model: EncodecModel) -> list[Tested]:
    """The model at its bitrates, the model it is compared with, and Opus."""
    wanted = options.kbps or list(model.config.target_bandwidths)
    found = [Tested("encodec_rt", kbps, through_model(model, kbps)) for kbps in wanted]
    if not options.kbps:
        found.append(Tested("encodec_rt", None, through_model(model, None)))
    if options.against:
        other = EncodecModel.from_pretrained(options.against)
        found += [Tested("against", kbps, through_model(other, kbps)) for kbps in wanted]
    if options.opus_tools:
        rates = options.opus_kbps or OPUS_KBPS
        found += [Tested("opus", kbps, through_opus(options.opus_tools, kbps)) for kbps in rates]
    return found


def add_cases(
    record: Record, kind: str, clips: Sequence[HeldOut], tested: Sequence[Tested], *, visqol: bool
) -> None:
    """Score every codec on ``clips``, and compare ours at 6 kbps with each other one."""
    table: dict[tuple[str, float | None], list[Row]] = {}
    for one in tested:
        rows = {clip.name: scores(clip, one.run(clip.audio), visqol=visqol) for clip in clips}
        table[one.codec, one.kbps] = list(rows.values())
        unseen = [rows[clip.name] for clip in clips if clip.unseen]
        values: dict[str, Json] = {**means(list(rows.values())), "clips": len(rows)}
        values |= {f"unseen_{name}": value for name, value in means(unseen).items()}
        values["interval_95"] = intervals(list(rows.values()))
        case = {"kind": kind, "codec": one.codec, "kbps": one.kbps}
        record.add(case, values={**values, "per_clip": rows})
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
        bands = " ".join(f"{values[n]:.1f}" for n in METRICS[6:] if n in values)
        label = f"{kind:<18} {one.codec:<10} {one.kbps or 'unquantised'!s:<11}"
        print(f"{label} {shown}  bands {bands}", flush=True)
    ours = table.get(("encodec_rt", 6.0))
    for (codec, kbps), rows_of in table.items():
        if ours is not None and codec != "encodec_rt":
            case = {"kind": kind, "codec": "encodec_rt", "kbps": 6.0, "minus": codec, "at": kbps}
            record.add(case, values={"difference": differences(ours, rows_of)})


def main() -> None:
    """Score the model and Opus, print the means, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--against", help="another model to score on the same clips")
    parser.add_argument("--opus-tools", type=Path, help="folder with opusenc and opusdec")
    parser.add_argument("--visqol", action="store_true")
    parser.add_argument("--kbps", type=float, nargs="+", help="our bitrates; default: all")
    parser.add_argument("--opus-kbps", type=int, nargs="+", help="Opus's bitrates; default: all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--most", type=int, default=0, help="most clips of each kind; 0: all")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--keep", action="store_true", help="write the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = held_out_clips(load_index(options.data), options.data)
    model = EncodecModel.from_pretrained(options.model)
    tested = codecs(options, model)
    record = Record("quality", folder=RESULTS if options.keep else None)
    for kind in options.kinds:
        plain = "music" if kind == "music" else "speech"
        chosen = [clip for clip in clips if clip.kind == plain]
        if options.most:
            chosen = chosen[:: -(-len(chosen) // options.most)]
        chosen = [SURROUNDINGS[kind](clip) for clip in chosen]
        add_cases(record, kind, chosen, tested, visqol=options.visqol)
    use = codebook_use(model, clips)
    record.add({"kind": "codebooks", "codec": "encodec_rt", "kbps": None}, values=use)
    print(f"codebooks: least used share {min(use['used_share'])}, entropy {use['entropy_bits']}")
    if options.picture:
        draw(record, options.picture)
    if options.keep:
        print(record.write())


if __name__ == "__main__":
    main()
