"""How close decoded audio is to the original: the only place that calls the metric libraries.

Every score compares aligned mono signals. SI-SDR (Le Roux et al. 2019) compares waveforms, PESQ
wide-band (ITU-T P.862.2) and ESTOI (Jensen and Taal 2016) compare speech as heard, and Zimtohrli
and ViSQOL, which is slow, any audio. All libraries come with the extra ``[quality]``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from encodec_rt.errors import BackendUnavailable, InputError
from encodec_rt.types import Audio

Kind = Literal["speech", "music"]

LONGEST_LAG_MS = 40.0
BANDS_KHZ = ((0.25, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (5.0, 8.0), (8.0, 11.0))
"""Octaves, and the two bands in which a dull codec fails; 11 kHz is where 24 kHz audio ends."""
SHORTEST_S = 0.5
_SPEECH_RATE_HZ = 16_000
_FULL_RATE_HZ = 48_000


@dataclass(frozen=True, slots=True)
class Scores:
    """One clip's scores; higher is better in all. Speech scores are None for music.

    ``pesq_wb`` and ``zimtohrli`` and ``visqol`` are opinion scores from 1 to about 4.6 or 5;
    ``estoi`` lies in [0, 1]; ``log_spectral_distance_db`` alone is better when lower.
    """

    si_sdr_db: float
    log_spectral_distance_db: float
    zimtohrli: float
    pesq_wb: float | None = None
    estoi: float | None = None
    visqol: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The scores by name."""
        return asdict(self)


def si_sdr_db(reference: Audio, decoded: Audio) -> float:
    """Scale-invariant signal-to-distortion ratio of equally long signals, in dB."""
    r, d = reference.astype(np.float64), decoded.astype(np.float64)
    wanted = (r @ d) / max(float(r @ r), 1e-12) * r
    error = d - wanted
    return 10 * math.log10(max(float(wanted @ wanted), 1e-12) / max(float(error @ error), 1e-12))


def log_spectral_distance_db(reference: Audio, decoded: Audio) -> float:
    """Mean over frames of the root mean square difference of log spectra, floored at -60 dB."""
    size, hop = 1024, 256
    window = np.hanning(size)

    def spectra(audio: Audio) -> NDArray[np.float64]:
        frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
        return np.square(np.abs(np.fft.rfft(frames * window)))

    a, b = spectra(reference), spectra(decoded)
    floor = 1e-6 * a.max() + 1e-12
    difference = 10 * (np.log10(a + floor) - np.log10(b + floor))
    return float(np.sqrt(np.square(difference).mean(1)).mean())


def band_levels_db(reference: Audio, decoded: Audio, sampling_rate: int) -> dict[str, float | None]:
    """How much louder [dB] ``decoded`` is than ``reference`` in each band, by the band's name.

    0 is right; below 0 the codec sounds dull, above it adds noise. None if the upper half of the
    band holds less than a millionth of the reference's power: audio sampled at 16 kHz has nothing
    above 8 kHz to compare.
    """
    powers = [_mean_power(audio) for audio in (reference, decoded)]
    levels: dict[str, float | None] = {}
    for low, high in BANDS_KHZ:
        top = _band_power(powers[0], (low + high) / 2, high, sampling_rate)
        if top <= 1e-6 * powers[0].sum():
            levels[band_name(low, high)] = None
            continue
        wanted, got = (_band_power(power, low, high, sampling_rate) for power in powers)
        levels[band_name(low, high)] = 10 * math.log10(max(got, 1e-12 * wanted) / wanted)
    return levels


def band_name(low_khz: float, high_khz: float) -> str:
    """What the level of a band is called in records and curves."""
    return f"band_{low_khz:g}_{high_khz:g}_khz_db"


def _mean_power(audio: Audio, size: int = 2048) -> NDArray[np.float64]:
    """[n] -> the mean power [1025] of Hann windows that overlap by half."""
    padded = np.pad(audio.astype(np.float64), (0, max(0, size - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2]
    power: NDArray[np.float64] = np.square(np.abs(np.fft.rfft(frames * np.hanning(size)))).mean(0)
    return power


def _band_power(power: NDArray[np.float64], low: float, high: float, rate: int) -> float:
    frequency_khz = np.linspace(0, rate / 2000, len(power))
    return float(power[(frequency_khz >= low) & (frequency_khz < high)].sum())


def align(reference: Audio, decoded: Audio, *, longest_lag: int) -> tuple[Audio, Audio]:
    """Both signals, cut to where they overlap after the delay that correlates best.

    A codec's delay does not count against its quality. Delays up to ``longest_lag`` samples are
    tried.
    """
    size = 1 << (len(reference) + len(decoded) - 1).bit_length()
    spectrum = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(spectrum, size)
    lags = np.arange(-longest_lag, longest_lag + 1)
    lag = int(lags[np.argmax(np.abs(correlation[lags]))])
    decoded = decoded[lag:] if lag > 0 else decoded
    reference = reference[-lag:] if lag < 0 else reference
    length = min(len(reference), len(decoded))
    return reference[:length], decoded[:length]


def score(
    reference: Audio,
    decoded: Audio,
    sampling_rate: int,
    *,
    kind: Kind = "speech",
    visqol: bool = False,
) -> Scores:
    """The scores of mono ``decoded`` [n] against mono ``reference`` [m].

    Raises InputError for signals too short, silent, not finite, or of lengths that no delay
    explains, and BackendUnavailable when a metric's library is not installed.
    """
    for name, audio in (("reference", reference), ("decoded audio", decoded)):
        if audio.ndim != 1 or not np.isfinite(audio).all():
            raise InputError(f"the {name} of shape {audio.shape} is not one channel of numbers")
        if len(audio) < SHORTEST_S * sampling_rate:
            raise InputError(
                f"the {name} lasts {len(audio) / sampling_rate:.2f} s; at least {SHORTEST_S} s "
                "are needed for a score"
            )
    if not np.any(reference):
        raise InputError("the reference is silent, so nothing can be compared with it")
    longest = int(LONGEST_LAG_MS * sampling_rate / 1000)
    if abs(len(reference) - len(decoded)) > longest:
        raise InputError(
            f"the reference lasts {len(reference) / sampling_rate:.3f} s and the decoded audio "
            f"{len(decoded) / sampling_rate:.3f} s; they may differ by at most "
            f"{LONGEST_LAG_MS:g} ms, so cut both to the same part"
        )
    reference, decoded = align(reference, decoded, longest_lag=longest)
    scores = Scores(
        si_sdr_db=si_sdr_db(reference, decoded),
        log_spectral_distance_db=log_spectral_distance_db(reference, decoded),
        zimtohrli=_zimtohrli(reference, decoded, sampling_rate),
        pesq_wb=pesq_wb(reference, decoded, sampling_rate) if kind == "speech" else None,
        estoi=estoi(reference, decoded, sampling_rate) if kind == "speech" else None,
        visqol=_visqol(reference, decoded, sampling_rate) if visqol else None,
    )
    return scores


def _resampled(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    resampled: Audio = soxr.resample(audio, from_hz, to_hz).astype(np.float32)
    return resampled


def _zimtohrli(reference: Audio, decoded: Audio, rate: int) -> float:
    try:
        import zimtohrli
    except ImportError as error:
        raise _missing("zimtohrli") from error
    a, b = (_resampled(audio, rate, _FULL_RATE_HZ) for audio in (reference, decoded))
    return float(zimtohrli.mos_from_signals(a, b))


def pesq_wb(reference: Audio, decoded: Audio, rate: int) -> float | None:
    """PESQ wide-band; None where it finds no speech. BackendUnavailable without its library."""
    try:
        import pesq
    except ImportError as error:
        raise _missing("pesq") from error
    a, b = (_resampled(audio, rate, _SPEECH_RATE_HZ) for audio in (reference, decoded))
    try:
        return float(pesq.pesq(_SPEECH_RATE_HZ, a, b, "wb"))
    except pesq.NoUtterancesError:
        return None


def estoi(reference: Audio, decoded: Audio, rate: int) -> float:
    """ESTOI; raises BackendUnavailable without its library."""
    try:
        import pystoi
    except ImportError as error:
        raise _missing("pystoi") from error
    a, b = (_resampled(audio, rate, _SPEECH_RATE_HZ) for audio in (reference, decoded))
    return float(pystoi.stoi(a, b, _SPEECH_RATE_HZ, extended=True))


def _visqol(reference: Audio, decoded: Audio, rate: int) -> float:
    try:
        import visqol

        metric = visqol.VisqolApi()
        # Its support vector machine, libsvm, is imported only here.
        metric.create(mode="audio")
    except ImportError as error:
        raise _missing("visqol-python, with libsvm-official,") from error
    a, b = (
        _resampled(audio, rate, _FULL_RATE_HZ).astype(np.float64) for audio in (reference, decoded)
    )
    return float(metric.measure_from_arrays(a, b, _FULL_RATE_HZ).moslqo)


def _missing(package: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"this metric needs the package {package}, which is not installed; "
        "run: pip install 'encodec-rt[quality]'"
    )
