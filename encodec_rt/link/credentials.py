"""Who may call: the bearer token, and the certificate that calls are pinned to."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import os
import secrets
import ssl
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from encodec_rt.errors import LinkError

TOKEN_BYTES = 32
VALID_DAYS = 3650
FINGERPRINT_BYTES = 32


def state_folder() -> Path:
    """Where token and certificate live by default: the user's configuration folder (XDG).

    Raises LinkError for a user without a home, as in some containers.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    if not base:
        try:
            base = str(Path.home() / ".config")
        except RuntimeError:
            raise LinkError("this user has no home; set HOME or XDG_CONFIG_HOME") from None
    return Path(base) / "encodec-rt"


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read; it appears only when complete.

    Raises LinkError if ``path`` is not the name of a file.
    """
    if not path.name or path.is_dir():
        raise LinkError(f"{str(path)!r} is not the name of a file")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_token(path: Path) -> str:
    """A new random token, written to ``path`` for its owner alone."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_secret(path, token.encode() + b"\n")
    return token


def read_token(path: Path) -> str:
    """The token in ``path``. Raises LinkError if it is missing, short, or others can read it."""
    if path.exists() and not path.is_file():
        raise LinkError(f"{path} is not a file; name the file that holds the token")
    if not path.exists():
        raise LinkError(f"{path} does not exist; 'encodec-rt link token' makes one, or imports one")
    if path.stat().st_mode & 0o077:
        raise LinkError(f"{path} can be read by others; run 'chmod 600 {path}'")
    try:
        # Windows editors put a byte order mark before the text, and may write UTF-16.
        token = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise LinkError(f"{path} is not plain text; write the token into it as UTF-8") from None
    check_token(token)
    return token


def check_token(token: str) -> None:
    """Raise LinkError for a token that could be guessed, or that does not fit into a header."""
    if len(token) < TOKEN_BYTES or not all("!" <= letter <= "~" for letter in token):
        raise LinkError(
            f"a token of {len(token)} characters; {TOKEN_BYTES} or more printable ones without "
            "spaces are needed ('encodec-rt link token' makes one)"
        )


def is_authorized(header: str | None, token: str) -> bool:
    """Whether an Authorization header carries ``token``, compared in constant time."""
    scheme, _, given = (header or "").partition(" ")
    carried = given.encode("utf-8", "surrogateescape")
    return hmac.compare_digest(carried, token.encode()) and scheme.lower() == "bearer"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address that only this machine can reach, or "localhost"."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def urls(scheme: str, host: str, port: int) -> list[str]:
    """The URLs of a server bound to ``host``: one, or one for each of this machine's addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [f"{scheme}://{host}:{port}"]
    found = _own_addresses(address.version) if address.is_unspecified else [address]
    hosts = [f"[{one}]" if one.version == 6 else str(one) for one in found]
    return [f"{scheme}://{one}:{port}" for one in hosts]


def _own_addresses(version: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """This machine's addresses; loopback and link-local ones come last, if at all."""
    import ifaddr

    texts = [
        ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    known = [ipaddress.ip_address(text) for text in texts]
    usable = [one for one in known if one.version == version and not one.is_link_local]
    return [one for one in usable if not one.is_loopback] or usable


def make_certificate(certificate: Path, key: Path, names: list[str]) -> None:
    """Write a self-signed certificate for ``names`` and its key, which only the owner can read.

    Raises LinkError for a name that no machine can have.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "encodec-rt link")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # Valid from a day ago, as the other machine's clock may be slow.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_secret(key, private.private_bytes(pem, form, secret))
    write_secret(certificate, signed.public_bytes(pem))


def read_fingerprint(certificate: Path) -> str:
    """The SHA-256 of a PEM certificate in hex, with which callers pin it. Raises LinkError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except ValueError as error:
        raise LinkError(f"{certificate} is not a PEM certificate: {error}") from error
    return hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).hexdigest()


def parse_fingerprint(text: str) -> bytes:
    """The 32 bytes of a fingerprint in hex, with colons or without. Raises LinkError."""
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != FINGERPRINT_BYTES:
        raise LinkError(f"fingerprint {text!r}; give the 64 hex digits that 'link listen' printed")
    return digest


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate.

    Raises LinkError if the two do not match, and for a key with a passphrase, as nobody can be
    asked.
    """
    locked = False

    def no_passphrase() -> str:
        nonlocal locked
        locked = True
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except (OSError, ValueError) as error:
        reason = "the key has a passphrase; give one without" if locked else _tls_reason(error)
        raise LinkError(f"certificate {certificate} with key {key}: {reason}") from error
    return context


def _tls_reason(error: Exception) -> str:
    if not isinstance(error, ssl.SSLError):
        return getattr(error, "strerror", None) or str(error)
    reasons = {"KEY_VALUES_MISMATCH": "the key is another certificate's"}
    return reasons.get(error.reason or "", "one of them is not a file of that kind in PEM")


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        return x509.DNSName(name.encode("idna").decode())
    except UnicodeError:
        raise LinkError(f"{name!r} is not the name of a machine; give a name or address") from None
