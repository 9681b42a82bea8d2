"""The demo's picture: what went in, what came out, and how long each frame took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.extras import needed_for
from encodec_rt.types import Audio

_WINDOW = 1024
_STEP = 240
_RANGE_DB = 80.0


def save_figure(
    path: Path,
    *,
    given: Audio,
    made: Audio,
    rate_hz: int,
    encode_ms: Sequence[float],
    decode_ms: Sequence[float],
    frame_ms: float,
    title: str,
) -> None:
    """Write a PNG of both spectrograms [dB, one scale] and of the time per frame.

    Raises BackendUnavailable without matplotlib.
    """
    with needed_for("the picture"):
        from matplotlib.figure import Figure

    levels = [_spectrogram(audio.mean(axis=0)) for audio in (given, made)]
    top = float(levels[0].max())
    seconds = given.shape[1] / rate_hz
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    figure.suptitle(title, fontsize=12)
    for axis, level, name in zip(axes, levels, ("in", "out"), strict=False):
        image = axis.imshow(
            level,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=top - _RANGE_DB,
            vmax=top,
            extent=(0, seconds, 0, rate_hz / 2000),
            interpolation="bilinear",
        )
        axis.set_ylabel("kHz")
        _label(axis, name)
    figure.colorbar(image, ax=axes[:2], label="dB", pad=0.01)
    _draw_times(axes[2], encode_ms, decode_ms, frame_ms)
    axes[2].set_xlim(0, seconds)
    figure.savefig(path, dpi=110, format="png")


def _draw_times(
    axis: Any, encode_ms: Sequence[float], decode_ms: Sequence[float], frame_ms: float
) -> None:
    both = np.add(encode_ms, decode_ms)
    at = (np.arange(len(both)) + 1) * frame_ms / 1000
    axis.fill_between(at, encode_ms, step="mid", color="#3b6fb6", linewidth=0, label="encode")
    axis.fill_between(at, encode_ms, both, step="mid", color="#e08a3c", linewidth=0, label="decode")
    axis.axhline(frame_ms, color="#b02a2a", linewidth=1.2, linestyle="--")
    axis.annotate(
        f"deadline {frame_ms:.2f} ms",
        (1, frame_ms),
        xycoords=("axes fraction", "data"),
        xytext=(-6, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="#b02a2a",
        fontsize=9,
    )
    # A single stall must not flatten all the rest; the table has the maximum.
    axis.set_ylim(0, max(1.35 * frame_ms, 1.1 * float(np.percentile(both, 99.5))))
    axis.set_ylabel("ms per frame")
    axis.set_xlabel("seconds")
    axis.legend(loc="upper left", ncols=2, fontsize=9, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _label(axis: Any, text: str) -> None:
    axis.text(
        0.008,
        0.93,
        text,
        transform=axis.transAxes,
        color="white",
        fontsize=12,
        fontweight="bold",
        va="top",
    )


def _spectrogram(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n] -> power in dB [frequencies, times], a Hann window every 10 ms at 24 kHz."""
    padded = np.pad(samples, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    return np.asarray(10 * np.log10(power.T + 1e-10))
