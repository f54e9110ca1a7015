"""What is signed is believed, and nothing else; what cannot be a release is refused by its form."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RefusedError,
    Release,
    TrustedKeys,
    create_key,
    key_id,
    read_private_key,
    read_public_key,
    read_trusted_keys,
    signed_release,
    verified_release,
)
from agridistill.errors import EdgeError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PREFIX = b"agridistill-model release v1\n"


def trusting(*keys: Ed25519PrivateKey) -> TrustedKeys:
    found = [key.public_key().public_bytes_raw() for key in keys]
    return TrustedKeys({key_id(key): key for key in found})


def document(**changes: Any) -> dict[str, Any]:
    files = [{"name": name, "size_bytes": 3, "sha256": "a" * 64} for name in ("m.onnx", "m.json", "g.png")]
    return {
        "version": 1,
        "created": datetime(2025, 1, 1, tzinfo=UTC).isoformat(),
        "files": files,
        "model": "m.onnx",
        "classes": ["a", "b"],
        "golden": [{"photo": "g.png", "label": "a"}],
        "minimum_agreement": 0.9,
        **changes,
    }


def signed(payload: bytes, key: Ed25519PrivateKey = KEY, prefix: bytes = PREFIX) -> bytes:
    signature = base64.b64encode(key.sign(prefix + payload)).decode()
    signatures = [{"key_id": key_id(key.public_key().public_bytes_raw()), "signature": signature}]
    return json.dumps({"payload": base64.b64encode(payload).decode(), "signatures": signatures}).encode()


def test_what_was_signed_comes_back() -> None:
    release = Release.model_validate_json(json.dumps(document()))
    envelope = signed_release(release, [OTHER, KEY])
    assert verified_release(envelope, trusting(KEY)) == release
    assert release.manifest == "m.json"
    assert release.folder == "v1"
    assert release.size_bytes == 9


def test_a_signature_counts_only_by_a_trusted_key_over_this_payload_as_a_release() -> None:
    payload = json.dumps(document()).encode()
    assert verified_release(signed(payload), trusting(KEY)).version == 1
    forged = json.loads(signed(payload))
    forged["payload"] = base64.b64encode(json.dumps(document(version=2)).encode()).decode()
    claimed = json.loads(signed(payload, OTHER))
    claimed["signatures"][0]["key_id"] = key_id(KEY.public_key().public_bytes_raw())
    for envelope in (
        signed(payload, OTHER),
        signed(payload, prefix=b""),
        json.dumps(forged).encode(),
        json.dumps(claimed).encode(),
        json.dumps({**json.loads(signed(payload)), "signatures": []}).encode(),
    ):
        with pytest.raises(RefusedError, match="a release signed by a trusted key"):
            verified_release(envelope, trusting(KEY))


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "a/b", "a\\b", "C:x", "", ".", "..", ".hidden", "a.", "a\n", "-o", "ä", "a b", "n\0"),
        *("a.part", "release.json", "Release.JSON", "M.ONNX", "x" * 101),
    ],
)
def test_a_name_that_is_no_plain_name_is_refused_though_it_is_signed(name: str) -> None:
    files = [*document()["files"], {"name": name, "size_bytes": 1, "sha256": "b" * 64}]
    with pytest.raises(RefusedError, match="a release that this AgriDistill can read"):
        verified_release(signed(json.dumps(document(files=files)).encode()), trusting(KEY))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": -1},
        {"version": 1.5},
        {"version": True},
        {"version": "2"},
        {"version": 10**30},
        {"product": "something else"},
        {"format_version": 2},
        {"unknown": 1},
        {"model": "g.png"},
        {"model": "../m.onnx"},
        {"files": [{**document()["files"][0], "size_bytes": 500_000_001}, *document()["files"][1:]]},
        {"files": document()["files"][:2]},
        {"files": [document()["files"][0], *document()["files"][2:]]},
        {"classes": ["a"]},
        {"golden": []},
        {"golden": [{"photo": "g.png", "label": "c"}]},
        {"golden": [{"photo": "other.png", "label": "a"}]},
        {"minimum_agreement": 0},
        {"minimum_agreement": float("nan")},
        {"base_url": "file:///etc/"},
        {"base_url": "http://x/\r\nHost: y/"},
        {"created": "yesterday"},
        {"trust": {"add": ["zz"]}},
        {"trust": {"add": ["00" * 32], "remove": [key_id(bytes(32))]}},
    ],
    ids=str,
)
def test_a_payload_that_is_no_release_is_refused_though_it_is_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        verified_release(signed(json.dumps(document(**changes)).encode()), trusting(KEY))


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"payload": 1, "signatures": []}',
        b'{"payload": "", "signatures": [1]}',
        b'{"payload": "", "signatures": {"a": 1}}',
        b'{"payload": "!", "signatures": []}',
        b"[" * 100_000,
        b"\xff\xfe",
        b" " * (MAX_RELEASE_BYTES + 1),
    ],
    ids=lambda content: content[:20],
)
def test_anything_else_is_refused_in_one_line(envelope: bytes) -> None:
    with pytest.raises(RefusedError) as told:
        verified_release(envelope, trusting(KEY))
    assert "\n" not in str(told.value)


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
