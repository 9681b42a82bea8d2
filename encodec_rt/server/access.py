"""Access: the bearer token, or a ticket obtained with it, valid once and for a short time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable

from encodec_rt.link.credentials import check_token, is_authorized

TICKET_S = 30.0
MAX_USED = 4096
"""How many used tickets are remembered. More could only be used within a ticket's lifetime by
exceeding the limit of requests per address."""


class Access:
    """Checks tokens and tickets; without a token everybody is admitted."""

    def __init__(self, token: str | None, clock: Callable[[], float]) -> None:
        """``clock`` is a monotonic clock in seconds. Raises LinkError for a token easy to guess."""
        if token is not None:
            check_token(token)
        self._token, self._clock = token, clock
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[str, None] = OrderedDict()

    def allows(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries the token."""
        return self._token is None or is_authorized(authorization, self._token)

    def make_ticket(self) -> str:
        """A ticket for one stream, valid for TICKET_S, of characters that a subprotocol allows."""
        claim = f"{int(1000 * (self._clock() + TICKET_S))}.{secrets.token_hex(8)}"
        return f"{claim}.{self._sign(claim)}"

    def takes_ticket(self, ticket: str) -> bool:
        """Whether ``ticket`` is ours, still valid and unused; marks it as used."""
        claim, _, signature = ticket.rpartition(".")
        given, wanted = signature.encode("utf-8", "replace"), self._sign(claim).encode()
        if not hmac.compare_digest(given, wanted) or claim in self._used:
            return False
        if 1000 * self._clock() > int(claim.partition(".")[0]):
            return False
        self._used[claim] = None
        if len(self._used) > MAX_USED:
            self._used.popitem(last=False)
        return True

    def _sign(self, claim: str) -> str:
        text = claim.encode("utf-8", "replace")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
