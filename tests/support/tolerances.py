"""The table of all bounds. Loosening one requires a measurement in CHANGELOG.md.

Errors are relative, ||given - wanted|| / ||wanted||, with the reference in float64, unless the
reason says otherwise.
"""

from __future__ import annotations

from types import MappingProxyType

_SUM = (
    "A chain of 4096 float32 additions: 2^-24 * sqrt(4096) if roundings are independent; up to "
    "5.3e-7 measured on CPUs, whose chains are shorter."
)
_TF32 = (
    "Operands rounded to nearest, to 11 bits: 2^-11 at most; 2.6e-4 to 3.1e-4 emulated at full "
    "size."
)

_BOUNDS = MappingProxyType(
    {
        ("own path", "float32"): (
            1e-5,
            "Excess squared distance of a code over the best one, as a share of |residual|^2: a "
            "float32 latent is off by some 1e-6, which moves a difference of distances by 4e-6.",
        ),
        ("transformers audio", "float32"): (
            1e-5,
            "Absolute, of audio within [-1, 1], by the same operations; equal bits are usual.",
        ),
        ("stream audio", "float32"): (
            1e-5,
            "100 dB. Sums of the same products in another order; 1e-6 is usual.",
        ),
        ("portable audio", "float32"): (
            1e-6,
            "120 dB, between the WebAssembly codec and plain torch; 128 to 133 measured.",
        ),
        ("heard in a browser", "correlation"): (
            0.65,
            "Below 1.5 kHz, of the best half second that was heard with the original: 1.00 if "
            "nothing was lost, 0.43 for another clip, 0.79 over a whole second on a machine whose "
            "load of 12 delayed a third of the packets.",
        ),
        ("decoded elsewhere", "correlation"): (
            0.99,
            "The same, of the best half second with Python's decoding of the same codes: 1.00 if "
            "nothing was lost; 0.96 for another clip through the same random weights.",
        ),
        ("conv1d", "float32"): (4e-6, _SUM),
        ("conv1d", "tf32"): (5e-4, _TF32),
        ("stream audio", "float16"): (
            3e-3,
            "50 dB. Operands of 11 bits in the layers with one row; 62 dB measured at full size.",
        ),
        ("code flips", "float16"): (
            5e-2,
            "Share of frames in which any of 8 codes changes; 1e-2 measured at full size.",
        ),
        ("cpu conv1d", "float32"): (
            1.5e-6,
            "A product with one row is one running sum per output: 9e-7 measured for 4096 terms, "
            "as for torch's own conv1d; the same sums over 8 rows are added in blocks, 3e-7.",
        ),
        ("conv_transpose1d", "float32"): (4e-6, _SUM),
        ("conv_transpose1d", "tf32"): (5e-4, _TF32),
        ("resblock", "float32"): (4e-6, _SUM),
        ("resblock", "tf32"): (7e-4, _TF32 + " Two products in a row."),
        ("lstm", "float32"): (4e-6, _SUM + " No slope of a gate is above 1."),
        ("lstm", "tf32"): (5e-4, _TF32),
        ("elu", "float32"): (
            6e-7,
            "Largest relative error of a kernel's ELU: 2.8e-7 with an exact exponential, at the "
            "end of the series, -0.35; a GPU's exponential adds 2 ulp of 0.7 to a result of 0.3.",
        ),
        ("near tie", "float32"): (
            1e-6,
            "Relative gap of squared distances below which float32, given the same latent, may "
            "pick either vector: rounding changes a distance by about 1e-7.",
        ),
        ("near tie", "share"): (1e-3, "Share of frames that may hold such a near-tie."),
        ("rvq_decode", "float32"): (1e-6, "A float32 sum of up to 32 vectors."),
        ("playback fill", "ms"): (
            30.0,
            "Largest distance of the queue from its target of 40 ms under 500 ppm of drift. The "
            "loop's own response to such a step is 7 ms, and blocks come and go by 13.3 ms each.",
        ),
        ("captured", "correlation"): (
            0.95,
            "Of a tenth of a second that was played with what was captured; equal bits are usual.",
        ),
        ("whole over the server", "share"): (
            0.4,
            "Of the pieces that must arrive intact and in order through a sound server on a busy "
            "machine without real-time priority; 0.85 to 1 measured at a load of 9 on two cores, "
            "0.5 at one of 15.",
        ),
        ("whole over the link", "share"): (
            0.3,
            "Of the pieces that a call's speaker must play intact and in order, with both ends of "
            "the call on that machine; 0.45 to 0.85 measured at the same load.",
        ),
        ("played back", "correlation"): (
            0.9,
            "Below 1.5 kHz, between decoded and played audio, at the best integer lag: half a "
            "sample costs 1 - cos(pi / 16), and the drift loop moves a sample or two.",
        ),
        ("echo return loss", "dB"): (
            25.0,
            "From the third second on, in a room of 50 ms; 36 to 41 measured for echoes 6 to 20 "
            "dB below the voice.",
        ),
        ("double talk", "correlation"): (
            0.8,
            "Of a voice with an echo 12 dB below it and the same voice alone, both processed; "
            "0.90 to 0.95 measured in three rooms.",
        ),
        ("double talk", "dB"): (
            3.0,
            "Median attenuation of that voice over its blocks of 20 ms; 0.5 to 1.1 measured.",
        ),
        ("default model", "correlation"): (
            0.85,
            "Below 1.5 kHz, of 0.4 s of speech before and after the embedded model at 6 kbps; "
            "0.90 to 0.99 measured on the bundled clip.",
        ),
        ("drift", "relative"): (
            0.2,
            "Error of the drift that the loop reports after four minutes, less than its period of "
            "five and a half.",
        ),
        ("heard over the link", "share"): (
            0.5,
            "Of the hops of a call that are, within 5 % of full scale, the far voice as decoded "
            "without a network; 0.73 to 1 measured on a busy machine, the rest concealed.",
        ),
        ("clock", "ppm"): (
            10.0,
            "Error of a device's estimated clock rate after five minutes of blocks of 13.3 ms: "
            "three times its standard deviation.",
        ),
        ("loudness", "LU"): (
            0.1,
            "Error in LUFS that EBU Tech 3341 allows a loudness meter; 0.01 measured at 48 kHz, "
            "0.05 at 16 kHz, where 1 kHz lies higher on the shelf.",
        ),
        ("concealment", "converged"): (
            1e-4,
            "Error 40 frames after five lost ones, relative to the output's level; 3e-6 measured.",
        ),
    }
)


def bound(op: str, dtype: str) -> float:
    """The bound for an operation in a dtype or unit; KeyError if there is none."""
    return _BOUNDS[op, dtype][0]
