"""The calling side of a call whose path is dead: it calls again, into the same session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from encodec_rt.errors import LinkError
from encodec_rt.link.call import Call
from encodec_rt.link.dialling import SessionEnded, SignallingClient

DEAD_AFTER_S = 3.0
"""A path that is silent for this long is given up: silence itself is announced every 0.4 s."""
RETRY_S = 1.0
ATTEMPT_S = 5.0


async def keep_connected(
    call: Call, client: SignallingClient, location: str, on_event: Callable[[str], None]
) -> None:
    """Watch ``call``, and redial ``location`` whenever its path is dead, until cancelled.

    The call limits how long this may take: it ends when nothing has arrived for too long. Raises
    SessionEnded when the other side has hung up meanwhile.
    """
    while True:
        await asyncio.sleep(RETRY_S / 4)
        if call.path_silent_s < DEAD_AFTER_S:
            continue
        on_event(f"no packets for {call.silent_s:.1f} s; calling again")
        while not await _redial(call, client, location):
            await asyncio.sleep(RETRY_S)
        on_event("connected again")


async def _redial(call: Call, client: SignallingClient, location: str) -> bool:
    """Whether the call moved to a new path. Raises SessionEnded."""
    try:
        offer = await call.renewal_offer()
        dialled = await client.dial(offer, timeout_s=ATTEMPT_S, location=location)
        return await call.accept_renewal(dialled.answer, ATTEMPT_S)
    except SessionEnded:
        raise
    except (LinkError, OSError):
        return False
    finally:
        await call.drop_unused_renewal()
