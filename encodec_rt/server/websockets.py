"""Sessions over WebSockets: from a request whose slot is reserved to the end of its stream."""

from __future__ import annotations

import asyncio
import secrets
import socket

from aiohttp import web
from torch import Tensor

from encodec_rt.errors import StateError
from encodec_rt.server.connection import Connection
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import MAX_MESSAGE_BYTES, SUBPROTOCOL, StreamRequest
from encodec_rt.server.session_state import SessionState
from encodec_rt.server.sessions import Sessions
from encodec_rt.server.slot_stream import SlotStream
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.weights import CodecWeights

SEND_BUFFER_BYTES = 64 * 1024
"""In the system and in the process, each: a client that does not read is then noticed in time."""


async def serve_websocket(
    sessions: Sessions,
    weights: CodecWeights,
    metrics: Metrics,
    request: web.Request,
    transport: asyncio.Transport,
    wanted: StreamRequest,
    slot: int,
    resumed: tuple[str, SessionState] | None,
) -> web.StreamResponse:
    """A session from its opening to its end, on a slot that was reserved.

    Raises StateError for a state of another model, before anything is answered.
    """
    response = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20.0,
        compress=False, timeout=1.0,
    )  # fmt: skip
    if not response.can_prepare(request).ok:
        raise StateError("this address is for WebSockets")
    token, state = resumed or (secrets.token_urlsafe(24), None)
    connection = Connection(
        sessions.new_key(), token, wanted, response, transport, sessions.config,
        sessions.limits, metrics, sessions.engine_loop.wake,
        asyncio.get_running_loop().time(),
    )  # fmt: skip

    def make(silence: Tensor, engine: Engine) -> SlotStream:
        stream = SlotStream(
            connection.key, slot, wanted, connection.pcm, connection.codes, engine, silence
        )
        if state is not None:
            stream.resume(state.slot, state.progress)
        return stream

    stream = await sessions.join(connection, make)
    connection.begin(stream.progress)
    try:
        await response.prepare(request)
        _limit_buffers(transport)
        connection.send_event("Welcome", **_welcome(connection, stream, weights))
        await connection.run()
    finally:
        await sessions.leave(connection)
    return response


def _welcome(
    connection: Connection, stream: SlotStream, weights: CodecWeights
) -> dict[str, object]:
    config = weights.config
    return {
        "resume": connection.token,
        "frame": stream.progress.encoded,
        "decoded": stream.progress.decoded,
        "codebooks": stream.books,
        "bits": config.codebook_nbits,
        "hop": config.hop_length,
        "rate": config.sampling_rate,
        "channels": config.audio_channels,
        "encoder_start_frames": weights.encoder_start_frames,
        "decoder_start_frames": weights.decoder_start_frames,
        "weights_sha256": weights.sha256,
    }


def _limit_buffers(transport: asyncio.Transport) -> None:
    transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
