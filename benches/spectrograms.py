"""A picture of spectrograms: originals, our model, and Opus at 6 and 12 kbps.

    python -m benches.spectrograms --data DATA/packed --opus-tools FOLDER --picture OUT.png

There is one column per clip: speech of a voice that was not in the training data, and music. Both
are held out and reach 11 kHz. All panels of a column have the same scale of levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benches.held_out import RATE, HeldOut, Samples, held_out_clips
from benches.quality import through_model, through_opus
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.training.tables import load_index

CLIPS = ("tuxpaint-stamps-default/da#1", "fretsonfire-songs-sectoid#0")
TITLES = ("Speech of an unheard voice", "Rock music")
SECONDS = 3.0
WINDOW, HOP = 1024, 128
RANGE_DB = 60.0


def levels_db(audio: Samples) -> NDArray[np.float64]:
    """Audio [n] -> the level in dB at each frequency and time [513, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, WINDOW // 2), WINDOW)[::HOP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)))
    return np.asarray(10 * np.log10(power.T + 1e-10))


def draw(columns: Sequence[Sequence[tuple[str, Samples]]], picture: Path) -> None:
    """Write the picture: ``columns`` of (title, audio), with the same titles in the same order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(columns[0])
    figure = Figure(figsize=(6 * len(columns), 2.1 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Held-out recordings before and after each codec", fontsize=12)
    axes = figure.subplots(rows, len(columns), squeeze=False, sharex=True, sharey=True)
    for column, (clips, name) in enumerate(zip(columns, TITLES, strict=True)):
        # A percentile, since with the maximum a single click would darken everything else.
        top = float(np.percentile(levels_db(clips[0][1]), 99.5))
        for row, (title, audio) in enumerate(clips):
            axis = axes[row][column]
            image = axis.imshow(
                levels_db(audio) - top,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=-RANGE_DB,
                vmax=0,
                extent=(0, len(audio) / RATE, 0, RATE / 2000),
                interpolation="bilinear",
            )
            axis.set_title(f"{name}: {title}", fontsize=9)
            axis.tick_params(labelsize=8)
            if column == 0:
                axis.set_ylabel("frequency, kHz", fontsize=8)
        axes[-1][column].set_xlabel("time, s", fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=0.6)
    bar.set_label("level below the loudest of the original, dB", fontsize=8)
    figure.savefig(picture, format="png", dpi=80)


def column(clip: HeldOut, model: EncodecModel, tools: Path) -> list[tuple[str, Samples]]:
    """The original clip, and the clip through each codec."""
    audio = clip.audio[: int(SECONDS * RATE)]
    return [
        ("original", audio),
        ("encodec_rt, 6 kbps", through_model(model, 6.0)(audio)),
        ("Opus, 6 kbps", through_opus(tools, 6)(audio)),
        ("Opus, 12 kbps", through_opus(tools, 12)(audio)),
    ]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--opus-tools", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = {clip.name: clip for clip in held_out_clips(load_index(options.data), options.data)}
    model = EncodecModel.from_pretrained(options.model)
    draw([column(clips[name], model, options.opus_tools) for name in CLIPS], options.picture)


if __name__ == "__main__":
    main()
