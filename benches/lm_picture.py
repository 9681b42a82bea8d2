"""A picture of quality against bitrate, with and without the language model.

    python -m benches.lm_picture [--picture docs/language-model.png]

Takes the rates of the newest ``lm`` record, and the newest scores of the embedded model and of Opus
in ``quality`` records. The language model does not change the codes, so points move to the left,
not up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benches.record import RESULTS

MEASURES = {"pesq_wb": "PESQ, wide band", "visqol": "ViSQOL"}
RESTART_S = 8

Scores = dict[float, dict[str, float]]


def newest(bench: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The records of a bench, oldest first."""
    paths = sorted(folder.glob(f"{bench}-*.json"))
    records: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(records, key=lambda record: str(record["time_utc"]))


def rates(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """The kbps of packed codes and of the language model, up to each layer."""
    found = {}
    for entry in record["cases"]:
        case = entry["case"]
        if case.get("coding") == "packed":
            found["packed"] = entry["values"]["kbps"]
        if case.get("coding") == "language model" and case.get("restart_s") == RESTART_S:
            found["language model"] = entry["values"]["kbps"]
    return found


def scores(records: list[dict[str, Any]], codec: str) -> Scores:
    """The scores of held-out speech at each nominal rate; later records replace earlier ones."""
    found: Scores = {}
    for record in records:
        for entry in record["cases"]:
            case = entry["case"]
            own = case.get("kind") == "speech" and case.get("codec") == codec
            if own and case.get("kbps") and "minus" not in case:
                found[float(case["kbps"])] = entry["values"]
    return dict(sorted(found.items()))


def draw(kbps: Mapping[str, list[float]], ours: Scores, opus: Scores, picture: Path) -> None:
    """Write the picture, with a panel for each score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(MEASURES))
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        # A packed rate is the nominal one, rounded up to whole bytes per packet.
        nominal = [min(ours, key=lambda rate: abs(rate - packed)) for packed in kbps["packed"]]
        heights = [ours[rate][measure] for rate in nominal]
        for before, after, height in zip(
            kbps["packed"], kbps["language model"], heights, strict=True
        ):
            style = {"arrowstyle": "->", "color": "tab:gray", "shrinkA": 6, "shrinkB": 6}
            axis.annotate("", (after, height), (before, height), arrowprops=style)
            text = f"-{100 * (1 - after / before):.0f} %"
            axis.annotate(
                *(text, (after, height), (-7, 3)),
                textcoords="offset points",
                fontsize=8,
                ha="right",
            )
        axis.plot(kbps["packed"], heights, "o-", color="tab:blue", label="packed codes")
        with_lm = kbps["language model"]
        axis.plot(with_lm, heights, "s-", color="tab:orange", label="with the language model")
        others = [opus[rate][measure] for rate in opus]
        axis.plot(list(opus), others, "^", color="tab:green", label="Opus, nominal rate")
        axis.set_xscale("log")
        ticks = [0.75, 1.5, 3, 6, 12]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(0.6, 14)
        axis.minorticks_off()
        axis.set_xlabel("kbps")
        axis.set_ylabel(title)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("Held-out speech: the same sound from fewer bits", fontsize=11)
    figure.savefig(picture, format="png", dpi=100)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path("docs/language-model.png"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    lm, quality = newest("lm", options.results), newest("quality", RESULTS)
    with_opus = [record for record in quality if scores([record], "opus")][-1:]
    ours, opus = scores(quality, "encodec_rt"), scores(with_opus, "opus")
    draw(rates(lm[-1]), ours, opus, options.picture)
    print(options.picture)


if __name__ == "__main__":
    main()
