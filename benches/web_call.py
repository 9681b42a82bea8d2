"""Pages in a browser on this machine: one that hears itself, and two that call each other.

    python -m benches.web_call [--seconds 60]

First a page by itself: how soon it is ready in a browser that has just started, and with what
delay it hears itself. Then a call: how much of the audio arrives, and when. The embedded model runs
in the pages' audio threads. In the call one page sends a clip, the other a fake microphone's file.
Packets that were sent and did not arrive are the network's loss; frames that were late, skipped or
never played are the pages'. The delay of sound devices is not included.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import soundfile

from benches.environment import Json
from benches.record import RESULTS, Record
from encodec_rt.export.blob import blob
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.web.server import PageServer
from tests.support.chromium import Chromium, Page
from tests.support.heard import in_call, until_a_page_waits
from tests.support.models import SPEECH

COUNTING = """{
  globalThis.sentPackets = 0;
  const { send } = RTCDataChannel.prototype;
  RTCDataChannel.prototype.send = function (message) {
    // Receiver reports are not audio.
    const { buffer, byteOffset = 0 } = message.buffer ? message : { buffer: message };
    const kind = new Uint8Array(buffer, byteOffset)[1];
    if (kind < 200 || kind > 206) sentPackets += 1;
    send.call(this, message);
  };
}"""
FIGURES = """({
  counts: encodec.last.counts, hops: encodec.last.hops, sent: sentPackets,
  dropped: encodec.call.path.dropped, ready_ms: encodec.ready,
  round_trip_ms: 1000 * encodec.call.reports.roundTripS, held_ms: 1000 * encodec.last.held,
  waiting_ms: 1000 * encodec.last.waiting, frame_ms: 1000 * encodec.frame / 24000,
})"""

ALONE = """({
  hops: encodec.last.hops, underruns: encodec.last.underruns, ready_ms: encodec.ready,
  waiting_ms: 1000 * encodec.last.waiting, frame_ms: 1000 * encodec.frame / 24000,
})"""
STARTS = 7


async def _alone() -> list[dict[str, float]]:
    """For each start of a browser, the figures of a page that hears itself through the codec."""
    server = PageServer(blob(EncodecModel.from_pretrained("default")))
    port = await server.start("127.0.0.1", 0, None)
    found = []
    try:
        for _ in range(STARTS):
            async with Chromium() as browser:
                page = await browser.open(f"http://127.0.0.1:{port}/")
                await in_call(page, "#microphone")
                await page.until("encodec.last?.hops > 300")
                found.append(await page.run(ALONE))
    finally:
        await server.close()
    return found


async def _call(seconds: float) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The figures of both pages at the beginning and the end of ``seconds`` of a call."""
    server = PageServer(blob(EncodecModel.from_pretrained("default")))
    port = await server.start("127.0.0.1", 0, None)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        samples, rate = soundfile.read(SPEECH, dtype="float32")
        soundfile.write(clip, samples, rate)
        try:
            async with Chromium(f"--use-file-for-fake-audio-capture={clip}") as browser:
                address = f"http://127.0.0.1:{port}/"
                pages: list[Page] = [await browser.open(address, before=COUNTING) for _ in range(2)]
                await in_call(pages[0], "#call")
                await until_a_page_waits(server)
                await in_call(pages[1], "#send-clip")
                for page in pages:
                    await page.until("encodec.call?.reports?.roundTripS && encodec.last?.counts")
                # In the first seconds the call is set up and the buffers adapt.
                await asyncio.sleep(5)
                before = [await page.run(FIGURES) for page in pages]
                await asyncio.sleep(seconds)
                after = [await page.run(FIGURES) for page in pages]
                return [before, after], browser.problems
        finally:
            await server.close()


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    record = Record("web-call", folder=options.out)
    starts = asyncio.run(_alone())
    waits = [each["frame_ms"] + each["waiting_ms"] for each in starts]
    alone: dict[str, Json] = {
        "ready_ms": round(median(each["ready_ms"] for each in starts), 1),
        "without devices_ms": round(median(waits), 1),
        "without devices at most_ms": round(max(waits), 1),
        "underruns": sum(each["underruns"] for each in starts),
        "hops played": sum(each["hops"] for each in starts),
    }
    record.add({"page": "alone", "starts": STARTS}, values=alone)
    (before, after), problems = asyncio.run(_call(options.seconds))
    if problems:
        raise SystemExit(f"the pages had problems: {problems}")
    for at, name in enumerate(("microphone", "clip")):
        first, last, other = before[at], after[at], 1 - at
        values: dict[str, Json] = {
            f"{key} frames" if key != "received" else "packets received": count
            - first["counts"][key]
            for key, count in last["counts"].items()
            if key
            in ("received", "frames", "lost", "late", "skipped", "repaired", "missed", "silent")
        }
        values["packets sent by the other"] = after[other]["sent"] - before[other]["sent"]
        values["hops played"] = last["hops"] - first["hops"]
        values |= {key: round(last[key], 2) for key in last if key.endswith("_ms")}
        loop = last["frame_ms"] + last["round_trip_ms"] / 2 + last["held_ms"] + last["waiting_ms"]
        values["without devices_ms"] = round(loop, 1)
        record.add({"page": name, "seconds": options.seconds}, values=values)
    print(record.table())
    print(record.write().name)


if __name__ == "__main__":
    main()
