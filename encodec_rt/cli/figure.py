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
    late_ms: Sequence[float],
    frame_ms: float,
    title: str,
) -> None:
    """Write a PNG of both spectrograms [dB, one scale] and of the time per frame.

    ``late_ms`` is how long after its last sample each frame was done.

    Raises BackendUnavailable without matplotlib.
    """
    with needed_for("the picture"):
        from matplotlib.figure import Figure

    levels = [_spectrogram(audio.mean(axis=0)) for audio in (given, made)]
    # Decibels below the loudest point of the original, in both pictures.
    top = float(levels[0].max())
    seconds = given.shape[1] / rate_hz
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    figure.suptitle(title, fontsize=12)
    names = ("original", "decoded")
    for axis, level, name in zip(axes, levels, names, strict=False):
        image = axis.imshow(
            level - top,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-_RANGE_DB,
            vmax=0.0,
            extent=(0, seconds, 0, rate_hz / 2000),
            interpolation="bilinear",
        )
        axis.set_ylabel("frequency, kHz")
        axis.set_title(name, loc="left", fontsize=10)
    figure.colorbar(image, ax=axes[:2], label="dB below the original's peak", pad=0.01)
    _draw_times(axes[2], encode_ms, decode_ms, late_ms, frame_ms)
    axes[2].set_xlim(0, seconds)
    figure.savefig(path, dpi=110, format="png")


def _draw_times(
    axis: Any,
    encode_ms: Sequence[float],
    decode_ms: Sequence[float],
    late_ms: Sequence[float],
    frame_ms: float,
) -> None:
    both, late = np.add(encode_ms, decode_ms), np.asarray(late_ms)
    at = (np.arange(len(both)) + 1) * frame_ms / 1000
    encode, decode = "#3b6fb6", "#e08a3c"
    if len(both) > 1:
        axis.fill_between(at, encode_ms, step="mid", color=encode, linewidth=0, label="encode")
        axis.fill_between(
            at, encode_ms, both, step="mid", color=decode, linewidth=0, label="decode"
        )
    else:
        axis.bar(at, encode_ms, frame_ms / 2000, color=encode, label="encode")
        axis.bar(at, decode_ms, frame_ms / 2000, bottom=encode_ms, color=decode, label="decode")
    # A single stall must not flatten all the rest; the table has the maximum.
    top = max(1.35 * frame_ms, 1.1 * float(np.percentile(both, 99.5)))
    missed = late > frame_ms
    deadline = f"deadline, {frame_ms:.2f} ms after a frame's last sample"
    axis.axhline(frame_ms, color="#b02a2a", linewidth=1.2, linestyle="--", label=deadline)
    axis.plot(
        at[missed],
        np.minimum(late[missed], 0.97 * top),
        linestyle="none",
        marker="v",
        markersize=4,
        color="#b02a2a",
        label=f"done too late: {int(missed.sum())} of {len(late)} frames",
    )
    axis.set_ylim(0, top)
    axis.set_ylabel("time per frame, ms")
    axis.set_xlabel("time, s")
    axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=4, fontsize=9,
        frameon=False,
    )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)


def _spectrogram(samples: Audio) -> NDArray[np.float64]:
    """[n] -> power in dB [frequencies, times], a Hann window every 10 ms at 24 kHz."""
    padded = np.pad(samples, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    return np.asarray(10 * np.log10(power.T + 1e-10))
