"""Sessions over WebSockets: from an admitted request to the end of its stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from encodec_rt.errors import StateError
from encodec_rt.server.connection import ANSWER_S, Connection
from encodec_rt.server.host import Intake, Opened, ServerFacts, SessionHost
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import MAX_MESSAGE_BYTES, SUBPROTOCOL, StreamRequest

SEND_BUFFER_BYTES = 64 * 1024
"""For the system's and the process's buffer each, so that a slow client is noticed in time."""


async def serve_websocket(
    host: SessionHost,
    metrics: Metrics,
    request: web.Request,
    transport: asyncio.Transport,
    wanted: StreamRequest,
    resume: str | None,
    stay: Callable[[], None],
) -> web.StreamResponse:
    """A session from its opening to its end; ``stay`` lifts the connection's time limit.

    Before it answers, it raises UnavailableError without a slot, and StateError where there
    is nothing to resume.
    """
    response = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE_BYTES, compress=False,
        timeout=ANSWER_S,
    )  # fmt: skip
    if not response.can_prepare(request).ok:
        raise StateError("this address is for WebSockets")

    def make(key: int, token: str, intake: Intake) -> Connection:
        return Connection(
            key, token, wanted, response, transport, host.facts.config, host.facts.limits,
            metrics, intake, asyncio.get_running_loop().time(),
        )  # fmt: skip

    connection, opened = await host.open(wanted, resume, make)
    try:
        stay()
        connection.begin(opened.progress)
        await response.prepare(request)
        _limit_buffers(transport)
        connection.send_event("Welcome", **_welcome(connection, opened, host.facts))
        await connection.run()
    finally:
        await host.end(connection)
    return response


def _welcome(connection: Connection, opened: Opened, facts: ServerFacts) -> dict[str, object]:
    config = facts.config
    return {
        "resume": connection.token,
        "frame": opened.progress.encoded,
        "decoded": opened.progress.decoded,
        "codebooks": opened.books,
        "bits": config.codebook_nbits,
        "hop": config.hop_length,
        "rate": config.sampling_rate,
        "channels": config.audio_channels,
        "encoder_start_frames": facts.encoder_start_frames,
        "decoder_start_frames": facts.decoder_start_frames,
        "weights_sha256": facts.weights_sha256,
    }


def _limit_buffers(transport: asyncio.Transport) -> None:
    transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
