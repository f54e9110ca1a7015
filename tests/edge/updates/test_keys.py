"""Keys are made once, kept secret, and read only where they are what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agridistill.edge.updates.release import (
    create_key,
    key_id,
    read_private_key,
    read_public_key,
    read_trusted_keys,
)
from agridistill.errors import EdgeError


def test_a_new_key_signs_what_its_public_half_verifies_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    identity = create_key(tmp_path / "keys" / "a.pem")
    assert (tmp_path / "keys" / "a.pem").stat().st_mode & 0o777 == 0o600
    trusted = read_trusted_keys(tmp_path / "keys")
    signature = read_private_key(tmp_path / "keys" / "a.pem").sign(b"word")
    assert trusted.verifies(identity, signature, b"word")
    assert not trusted.verifies(identity, signature, b"other")
    assert not trusted.verifies("0" * 16, signature, b"word")
    assert key_id(read_public_key(tmp_path / "keys" / "a.pem.pub")) == identity


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "a.pem")
    before = (tmp_path / "a.pem").read_bytes()
    with pytest.raises(EdgeError, match="which exists"):
        create_key(tmp_path / "a.pem")
    (tmp_path / "b.pem.pub").write_text("mine")
    with pytest.raises(EdgeError, match=r"b\.pem\.pub', which exists"):
        create_key(tmp_path / "b.pem")
    assert (tmp_path / "a.pem").read_bytes() == before
    assert not (tmp_path / "b.pem").exists()


def test_a_password_is_needed_where_one_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(tmp_path / "open.pem")
    monkeypatch.setenv("AGRIDISTILL_KEY_PASSWORD", "leaf")
    create_key(tmp_path / "a.pem")
    assert b"ENCRYPTED" in (tmp_path / "a.pem").read_bytes()
    read_private_key(tmp_path / "a.pem")
    read_private_key(tmp_path / "open.pem")
    for password in ("other", ""):
        monkeypatch.setenv("AGRIDISTILL_KEY_PASSWORD", password)
        with pytest.raises(EdgeError, match="AGRIDISTILL_KEY_PASSWORD"):
            read_private_key(tmp_path / "a.pem")


def test_what_is_no_such_key_is_told(tmp_path: Path) -> None:
    create_key(tmp_path / "a.pem")
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    for path in (tmp_path / "noise", tmp_path / "a.pem.pub", tmp_path / "rsa.pem", tmp_path / "none", tmp_path):
        with pytest.raises(EdgeError):
            read_private_key(path)
    for path in (tmp_path / "noise", tmp_path / "a.pem", tmp_path / "none"):
        with pytest.raises(EdgeError):
            read_public_key(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EdgeError, match="a folder with public keys"):
        read_trusted_keys(tmp_path / "empty")
