"""The server under load: sessions against round trips, overload, restarts, churn and abuse.

    python -m benches.server [sessions long full overload restart churn hostile fronts]

The server and its clients (this process) are separate processes on loopback. Every client sends a
frame of speech every 13.3 ms and gets its codes and decoded audio back; the round trip is from
sending a frame to receiving its audio. "long" runs the most sessions that kept 20 ms for ten
minutes, "full" uses the architecture of the paper's 24 kHz model with random weights. "fronts"
measures what a frame of a session costs the engine's process, with a tiny model, so that nearly all
of it is the server's own work; ``--device cuda`` runs that part on a GPU. All parts take 26 minutes
at most, ``--smoke`` a minute. The picture shows the p50 and p99 of round trips against the number
of sessions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benches.record import RESULTS, Record
from benches.server.abuse import churn, hostile
from benches.server.cases import engine_alone, fronts, holds, overload, restart, sessions
from benches.server.picture import draw
from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec

PARTS = ("sessions", "long", "full", "overload", "restart", "churn", "hostile", "fronts")


@contextmanager
def random_weights(config: EncodecConfig) -> Iterator[str]:
    """A folder with a model of this configuration and random weights."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        EncodecModel(config).save_pretrained(folder)
        yield folder


def most_sessions(
    record: Record, codec: Codec, model: str, counts: list[int], seconds: float, what: str
) -> int:
    """Try these counts until one is too many -> the largest that kept 20 ms, at least 1."""
    most = 1
    for count in counts:
        if not holds(sessions(record, codec, model, count, seconds, what)):
            break
        most = count
    return most


def main() -> None:
    """Run the parts asked for, and write the record and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--model", default="default")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10, 12])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--long-seconds", type=float, default=600.0)
    parser.add_argument("--long-sessions", type=int, help="default: the most that kept 20 ms")
    parser.add_argument("--opened", type=int, default=100_000)
    parser.add_argument("--churn-seconds", type=float, default=330.0, help="time limit")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--handshakes", type=int, default=10_000)
    parser.add_argument("--hostile-seconds", type=float, default=120.0)
    parser.add_argument("--front-sessions", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="of the part fronts")
    parser.add_argument("--smoke", action="store_true", help="a quick trial of all parts")
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.counts, arguments.seconds, arguments.long_seconds = [1, 2], 2.0, 3.0
        arguments.opened, arguments.churn_seconds = 200, 5.0
        arguments.messages, arguments.handshakes, arguments.hostile_seconds = 2000, 200, 8.0
    torch.set_num_threads(1)
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run the parts one after another."""
    codec, model, parts = Codec.load(arguments.model), arguments.model, arguments.parts or PARTS
    record = Record("server", folder=arguments.out)
    seconds, most = arguments.seconds, arguments.long_sessions
    if "sessions" in parts:
        with torch.inference_mode():
            engine_alone(record, codec, arguments.counts)
        found = most_sessions(record, codec, model, arguments.counts, seconds, "sessions")
        most = most or found
    if "long" in parts:
        sessions(record, codec, model, most or 8, arguments.long_seconds, "long")
    if "full" in parts:
        with random_weights(EncodecConfig()) as folder:
            large = Codec.load(folder)
            most_sessions(record, large, folder, [1, 2, 3, 4], seconds, "full")
    if "overload" in parts:
        overload(record, codec, model, most or 5, seconds)
    if "restart" in parts:
        restart(record, codec, model, min(most or 4, 4), max(seconds, 6.0))
    if "churn" in parts:
        churn(record, model, arguments.opened, arguments.churn_seconds)
    if "hostile" in parts:
        hostile(
            record, codec, model, min(most or 4, 4), arguments.messages, arguments.handshakes,
            arguments.hostile_seconds,
        )  # fmt: skip
    if "fronts" in parts:
        with random_weights(EncodecConfig(hidden_size=8, num_filters=2)) as folder:
            tiny, count = Codec.load(folder), arguments.front_sessions
            fronts(record, tiny, folder, count, seconds, arguments.device)
    path = record.write()
    draw(record, Path(path).with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
