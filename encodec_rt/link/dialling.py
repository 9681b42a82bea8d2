"""The calling side of signalling: post an offer to a listener, and hang up again."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from encodec_rt.errors import LinkError
from encodec_rt.link.credentials import is_loopback, parse_fingerprint
from encodec_rt.link.whip import PATH, SDP_TYPE


@dataclass(frozen=True)
class DialAnswer:
    """The result of posting an offer: the answer, and where to hang up."""

    answer: str
    location: str


class SignallingClient:
    """The calling side of one server."""

    def __init__(self, url: str, *, token: str | None, fingerprint: str | None = None) -> None:
        """``fingerprint`` pins the server's certificate; without it the system's roots decide.

        Raises LinkError for an invalid URL, or one that would send the token unencrypted.
        """
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = None
        if not good or "@" in parts.netloc:
            raise LinkError(
                f"{url!r} is not an address to call; give one such as https://HOST:PORT"
            )
        assert parts.hostname is not None
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise LinkError(f"{url}: http is for this machine only; use https")
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._ssl: bool | aiohttp.Fingerprint = True
        if fingerprint is not None:
            self._ssl = aiohttp.Fingerprint(parse_fingerprint(fingerprint))
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    async def dial(
        self, offer: str, *, timeout_s: float = 15.0, location: str = PATH
    ) -> DialAnswer:
        """Post ``offer``, to the ``location`` of an existing call for a new path.

        Raises LinkError if nobody answers, or the call is refused.
        """
        headers = self._headers | {"Content-Type": SDP_TYPE}
        try:
            async with (
                self._session(timeout_s) as session,
                session.post(
                    self._base + location,
                    data=offer.encode(),
                    headers=headers,
                    ssl=self._ssl,
                    allow_redirects=False,
                ) as response,
            ):
                text = await response.text()
                if response.status == 404 and location != PATH:
                    raise SessionEnded("the other side has ended the call meanwhile")
                if response.status != 201:
                    raise LinkError(_refusal(response.status, text))
                return DialAnswer(text, response.headers.get("Location", ""))
        except aiohttp.ServerFingerprintMismatch as error:
            raise LinkError(
                f"the certificate of {self._base} is not the pinned one but {error.got.hex()}; "
                "it was renewed, or someone intercepts the call"
            ) from error
        except asyncio.TimeoutError:
            raise LinkError(f"{self._base} did not answer within {timeout_s:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise LinkError(
                f"the certificate of {self._base} {certificate_problem(error.certificate_error)}; "
                "pin it with --fingerprint, which 'encodec-rt link listen' prints there"
            ) from error
        except aiohttp.ClientConnectorError as error:
            # Its own message shows an address in memory.
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else error.os_error.strerror
            raise LinkError(f"{self._base} cannot be reached: {reason}") from error
        # An impossible name raises ValueError, and so do bytes that are not text.
        except (aiohttp.ClientError, ValueError) as error:
            raise LinkError(f"{self._base} cannot be reached: {error}") from error

    async def hang_up(self, location: str, *, timeout_s: float = 3.0) -> None:
        """Delete the call at ``location``; a server that is already gone is not an error."""
        if not location.startswith(PATH + "/"):
            return
        try:
            async with (
                self._session(timeout_s) as session,
                session.delete(self._base + location, headers=self._headers, ssl=self._ssl),
            ):
                return
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return

    @staticmethod
    def _session(timeout_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))


class SessionEnded(LinkError):
    """The call that was to continue over a new path has ended."""


def certificate_problem(error: Exception) -> str:
    """Why a certificate was not accepted, by OpenSSL's number of it (X509_V_ERR_...)."""
    problems = {
        9: "is not valid yet: look at both clocks",
        10: "has expired",
        62: "is for another name",
        64: "is for another address",
    }
    number = getattr(error, "verify_code", None)
    return problems.get(number or 0, "is not signed by an authority that this machine trusts")


def _refusal(status: int, text: str) -> str:
    # It may come from anybody, and is shown on a terminal.
    text = "".join(letter for letter in text[:300] if letter.isprintable())
    reasons = {
        400: text,
        401: "the token is not the other side's; copy what 'encodec-rt link token' shows there",
        403: "the other side accepts no calls from web pages",
        404: "nothing listens for calls at that address",
        409: "the other side took this offer before; call again",
        429: "too many calls; wait a few seconds",
        503: text or "the line is busy",
    }
    return f"the call was refused ({status}): {reasons.get(status, 'no reason was given')}"
