from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

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
    # The scheme's name is case-insensitive (RFC 9110, 11.1).
    assert credentials.is_authorized(f"bearer {token}", token)
    wrong = (None, "", token, f"bearer{token}", f"Bearer {token}x", f"Bearer {token[:-1]}")
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


def test_a_token_is_read_as_an_editor_saved_it(tmp_path: Path) -> None:
    path, token = tmp_path / "token", "t" * 40
    credentials.write_secret(path, b"\xef\xbb\xbf" + token.encode() + b"\r\n")
    assert credentials.read_token(path) == token
    credentials.write_secret(path, token.encode("utf-16"))
    with pytest.raises(LinkError, match="write the token into it as UTF-8"):
        credentials.read_token(path)
    with pytest.raises(LinkError, match="is not a file"):
        credentials.read_token(tmp_path)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(LinkError, match="HOME or XDG_CONFIG_HOME"):
        credentials.state_folder()


def test_certificates_are_made_for_names_of_any_script_and_refused_for_others(
    tmp_path: Path,
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    credentials.make_certificate(certificate, key, ["bücher.example", "192.0.2.1"])
    credentials.server_context(certificate, key)
    for name in ("x" * 70, "a..b"):
        with pytest.raises(LinkError, match="not the name of a machine"):
            credentials.make_certificate(certificate, key, [name])


def test_a_key_that_does_not_fit_is_refused_for_its_reason(tmp_path: Path) -> None:
    for name in ("one", "two"):
        credentials.make_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", ["h"])
    private = serialization.load_pem_private_key((tmp_path / "one.key").read_bytes(), None)
    locked = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked.key").write_bytes(locked)
    (tmp_path / "text.key").write_text("none")
    reasons = {
        "two.key": "another certificate's",
        "locked.key": "has a passphrase; give one without",
        "text.key": "in PEM",
        "none.key": "No such file",
    }
    for key, reason in reasons.items():
        with pytest.raises(LinkError, match=reason):
            credentials.server_context(tmp_path / "one.pem", tmp_path / key)
