"""What 'link listen' and 'link call' share: the course of a call."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encodec_rt.cli.call_endpoints import open_endpoints
from encodec_rt.cli.codes_recording import CallRecorder, numbered
from encodec_rt.cli.console import event_printer, report, report_abandoned, say
from encodec_rt.extras import needed_for

if TYPE_CHECKING:
    from ssl import SSLContext

    from rich.console import Console

    from encodec_rt.cli.link_options import LinkOptions
    from encodec_rt.cli.options import CodecOptions
    from encodec_rt.link.call import Call, CallOptions
    from encodec_rt.link.dialling import SignallingClient
    from encodec_rt.streaming.codec import Codec

SHOW_EVERY_S = 0.2
LOG_EVERY_S = 2.0


class CallCourse:
    """A call, shown while it runs and reported at its end."""

    def __init__(
        self,
        codec: Codec,
        link: LinkOptions,
        options: CallOptions,
        console: Console,
        *,
        recorder: CallRecorder | None,
        number: int = 1,
        force: bool,
    ) -> None:
        """Open what it hears and says, and make the call of that ``number``.

        Raises AudioDeviceError, InputError and ConfigError.
        """
        from encodec_rt.link.call import Call
        from encodec_rt.link.endpoints import MeteredSink, MeteredSource

        record = None if link.record is None else numbered(link.record, number)
        recording = None if recorder is None else recorder.open(number, event_printer(console))
        endpoints = open_endpoints(
            codec, link, record, on_event=event_printer(console), force=force
        )
        self._console = console
        self._began_s = self._ended_s = 0.0
        self._warned = False
        self._devices = endpoints.devices
        self._source, self._sink = MeteredSource(endpoints.source), MeteredSink(endpoints.sink)
        self._stats_json, self._recording = link.stats_json, recording
        self._recorded = [] if record is None else [record]
        self._recorded += [] if recorder is None else recorder.paths(number)
        self.call: Call = Call(codec, self._source, self._sink, options, recording)

    async def run(self) -> None:
        """Run the call to its end, and show it."""
        self._began_s = time.monotonic()
        shown = asyncio.create_task(self._show())
        try:
            await self.call.run()
        finally:
            self._ended_s = time.monotonic()
            # The display leaves the terminal before anything else is said there.
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)

    def report(self) -> None:
        """Say how the call ended, and write its statistics if requested.

        A call that was refused has nothing to report.
        """
        from encodec_rt.atomic import replacing
        from encodec_rt.cli.call_panel import summary

        if not self._began_s:
            return
        statistics = self._statistics()
        report(summary(statistics, self._ended_s - self._began_s))
        if statistics["encodecRt"]["codecShare"] > 1:
            say(f"warning: {overloaded(statistics)}")
        for path in filter(Path.is_file, self._recorded):
            report(f"wrote {path}")
        if self._stats_json is not None:
            with replacing(self._stats_json, force=True) as part:
                part.write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")

    async def _show(self) -> None:
        from encodec_rt.cli.call_panel import CallMeter, call_line, call_panel
        from encodec_rt.cli.live_panel import Display

        meter = CallMeter()
        every_s = SHOW_EVERY_S if self._console.is_terminal else LOG_EVERY_S
        with Display(self._console, call_panel, call_line) as shown:
            while True:
                await asyncio.sleep(every_s)
                statistics, seconds = self._statistics(), time.monotonic() - self._began_s
                if statistics["encodecRt"]["codecShare"] > 1 and not self._warned:
                    self._warned = True
                    event_printer(self._console)(f"warning: {overloaded(statistics)}")
                shown.show(
                    meter.update(
                        statistics,
                        seconds,
                        sent_db=self._source.level.rms_db,
                        heard_db=self._sink.level.rms_db,
                    )
                )

    def _statistics(self) -> dict[str, Any]:
        statistics = self.call.statistics()
        if self._devices is not None:
            statistics["devices"] = self._devices.statistics()
        return statistics


def overloaded(statistics: dict[str, Any]) -> str:
    """The warning that the codec takes more time than a frame lasts."""
    return (
        f"the codec takes {100 * statistics['encodecRt']['codecShare']:.0f} % of the time that a "
        "frame lasts, too slow for a call here; try a smaller model or another --backend"
    )


def require_link() -> None:
    """Raise BackendUnavailable unless the libraries of the link are installed."""
    with needed_for("the voice link"):
        import aiohttp
        import aiortc
        import cryptography
    del aiohttp, aiortc, cryptography


def prepare(options: CodecOptions, link: LinkOptions) -> Codec:
    """The codec, warmed up. Errors in ``link``'s options are raised now, not at the first call."""
    import torch

    from encodec_rt.atomic import check_target
    from encodec_rt.sound.realtime import check_real_time
    from encodec_rt.streaming.codec import warm_up

    if link.real_time:
        check_real_time()
    # One frame is too little work to share between cores.
    torch.set_num_threads(1)
    report_abandoned(link.record, link.save, link.save_sent)
    link.for_call(options.bandwidth)
    if link.stats_json is not None:
        check_target(link.stats_json, force=True)
    codec = options.load()
    codec.config.codebooks_for(options.bandwidth)
    link.voice(codec.config.sampling_rate)
    warm_up(codec, codec.config.target_bandwidths[0], "primed")
    # Collecting garbage among all that was loaded takes a tenth of a second, as a call begins.
    gc.freeze()
    return codec


async def answer_calls(
    make: Callable[[], CallCourse],
    host: str,
    port: int,
    *,
    context: SSLContext | None,
    token: str | None,
    announce: Callable[[int], None],
    once: bool,
    page: bytes | None = None,
) -> None:
    """Listen for calls until cancelled, or with ``once`` until the first has ended.

    With ``page``, a model's file for the browser, serve the page that calls, too.
    """
    from encodec_rt.link.signalling import SignallingServer
    from encodec_rt.web.server import PageServer

    ended = asyncio.Event()

    class ListeningCall:
        """A call whose end is reported."""

        def __init__(self) -> None:
            self._course = make()

        @property
        def is_lost(self) -> bool:
            return self._course.call.is_lost

        async def answer(self, offer: str) -> str:
            return await self._course.call.answer(offer)

        async def renew(self, offer: str) -> str:
            report("the other side calls again")
            return await self._course.call.renew(offer)

        async def run(self) -> None:
            report("a call begins")
            try:
                await self._course.run()
            finally:
                try:
                    self._course.report()
                except OSError as error:
                    # A failed write must not prevent the next call.
                    say(f"warning: {error.filename or 'a file'}: {error.strerror}")
                finally:
                    if once:
                        ended.set()

        async def close(self) -> None:
            await self._course.call.close()

    calls = SignallingServer(ListeningCall, token=token)
    server = calls if page is None else PageServer(page, token=token, calls=calls)
    announce(await server.start(host, port, context))
    try:
        await ended.wait()
    finally:
        await server.close()


async def dial(make: Callable[[], CallCourse], client: SignallingClient) -> None:
    """Call whom ``client`` reaches, until one side hangs up."""
    from encodec_rt.link.redial import keep_connected

    course = make()
    location = ""
    try:
        dialled = await client.dial(await course.call.offer())
        location = dialled.location
        await course.call.accept(dialled.answer)
        tasks = [asyncio.ensure_future(course.run())]
        if course.call.options.reconnect_s > 0 and location:
            redialling = keep_connected(course.call, client, location, say)
            tasks.append(asyncio.ensure_future(redialling))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await course.call.close()
        await client.hang_up(location)
        course.report()
