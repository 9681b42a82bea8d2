"""One live stream: how long each frame takes to encode and decode, and how many are late.

    python -m benches.stream [--device cuda] [--seconds 30] [--model default]

Speech passes through StreamEncoder, packets and StreamDecoder, flat out and at the pace of a
microphone. A frame is late if it is not decoded when the next one arrives. Without --model the
architecture is that of the paper's 24 kHz model with random weights, which takes the same time as a
trained one.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benches.bundled import bundled
from benches.record import RESULTS, Record
from encodec_rt.config import EncodecConfig
from encodec_rt.live.loop import Loopback, loop_back
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio


def codec_for(model: str | None, device: str, backend: str) -> Codec:
    """The codec to time: ``model`` as for Codec.load, or random weights if None."""
    if model is not None:
        return Codec.load(model, device=device, backend=backend)
    torch.manual_seed(0)
    return Codec(EncodecModel(EncodecConfig()).eval(), device=device, backend=backend)


def speech(codec: Codec, seconds: float) -> Audio:
    """The bundled speech [channels, n], repeated to ``seconds``."""
    config = codec.config
    clip = bundled("speech_en", config.sampling_rate, config.audio_channels)
    return np.resize(clip, (len(clip), int(seconds * config.sampling_rate)))


def add(record: Record, case: dict[str, object], run: Loopback) -> None:
    """Add a run to the record, and print it."""
    added = record.add(
        {key: value for key, value in case.items() if isinstance(value, (str, int, float))},
        {"encode": run.encode_ms, "decode": run.decode_ms, "both": run.both_ms},
        deadline_ms=run.frame_ms,
        values={
            "frames_late": run.misses,
            "late_max_ms": max(run.late_ms),
            "real_time_factor": run.real_time_factor,
            "start_up_ms": run.start_up_ms,
            "payload_kbps": 8 * run.payload_bytes / (run.packets * run.frame_ms),
        },
    )
    print(record.table([added]), flush=True)


def main() -> None:
    """Time the cases asked for, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=None, help="as for Codec.load; else random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--bandwidth", type=float, nargs="+", default=[6.0])
    parser.add_argument("--start", nargs="+", default=["primed"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of audio, per case")
    parser.add_argument("--threads", type=int, default=1, help="torch's CPU threads")
    parser.add_argument("--no-paced", action="store_true", help="run flat out only")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = Record("stream", device=options.device, folder=options.out)
    for backend in options.backend:
        codec = codec_for(options.model, options.device, backend)
        audio = speech(codec, options.seconds)
        for bandwidth in options.bandwidth:
            for start in options.start:
                for paced in (False,) if options.no_paced else (False, True):
                    case = {
                        "model": options.model or "encodec_24khz, random weights",
                        "backend": codec.ops.name,
                        "bandwidth_kbps": bandwidth,
                        "start": start,
                        "paced": paced,
                        "threads": options.threads,
                    }
                    run = loop_back(
                        codec, audio, bandwidth_kbps=bandwidth, start=start, paced=paced
                    )
                    add(record, case, run)
    path = record.write()
    print(path.name)


if __name__ == "__main__":
    main()
