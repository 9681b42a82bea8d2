from __future__ import annotations

import stat
from pathlib import Path

import pytest

from encodec_rt.errors import LinkError
from encodec_rt.link import credentials


def test_a_token_is_long_random_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    token = credentials.make_token(path)
    assert credentials.read_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.make_token(path) != token
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    credentials.make_token(path)
    path.chmod(0o644)
    with pytest.raises(LinkError, match="chmod 600"):
        credentials.read_token(path)


@pytest.mark.parametrize("token", ["", "short", "x" * 31, "with space " * 8, "ü" * 40])
def test_weak_tokens_are_refused(tmp_path: Path, token: str) -> None:
    path = tmp_path / "token"
    credentials.write_secret(path, token.encode())
    with pytest.raises(LinkError, match="token"):
        credentials.read_token(path)


def test_only_the_exact_bearer_header_is_authorized() -> None:
    token = "t" * 40
    assert credentials.is_authorized(f"Bearer {token}", token)
    wrong = (None, "", token, f"bearer {token}", f"Bearer {token}x", f"Bearer {token[:-1]}")
    assert not any(credentials.is_authorized(header, token) for header in wrong)
    assert not credentials.is_authorized("Bearer \udcff", token)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_told_from_other_addresses(host: str, expected: bool) -> None:
    assert credentials.is_loopback(host) is expected


def test_a_certificate_is_made_loaded_and_known_by_its_fingerprint(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(certificate, key, ["127.0.0.1", "host.example"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    credentials.server_context(certificate, key)
    digest = credentials.read_fingerprint(certificate)
    spaced = ":".join(digest[i : i + 2] for i in range(0, 64, 2)).upper()
    assert credentials.parse_fingerprint(spaced) == bytes.fromhex(digest)


def test_a_certificate_with_another_key_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        credentials.make_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", ["a"])
    with pytest.raises(LinkError, match="certificate"):
        credentials.server_context(tmp_path / "one.pem", tmp_path / "two.key")


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(LinkError, match="fingerprint"):
        credentials.parse_fingerprint(text)
