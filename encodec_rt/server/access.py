"""Who may come in: the bearer token, or a ticket that it buys, good once and for a while."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable

from encodec_rt.link.credentials import check_token, is_authorized

TICKET_S = 30.0
MAX_USED = 4096
"""Tickets that are remembered as used. They are only forgotten earlier if that many are used within
their time, which the limit of requests per address does not allow."""


class Access:
    """Checks tokens and tickets; without a token everybody may come in."""

    def __init__(self, token: str | None, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds and only rises. Raises LinkError for a token easy to guess."""
        if token is not None:
            check_token(token)
        self._token, self._clock = token, clock
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[str, None] = OrderedDict()

    def allows(self, authorization: str | None) -> bool:
        """Whether an Authorization header is that of who has the token."""
        return self._token is None or is_authorized(authorization, self._token)

    def make_ticket(self) -> str:
        """A ticket for one stream, to be used within TICKET_S; of characters a subprotocol has."""
        claim = f"{int(1000 * (self._clock() + TICKET_S))}.{secrets.token_hex(8)}"
        return f"{claim}.{self._sign(claim)}"

    def takes_ticket(self, ticket: str) -> bool:
        """Whether ``ticket`` is one of ours, in time, and not used before; it is used now."""
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
