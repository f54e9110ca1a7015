"""Ed25519 keys: those that sign releases, and those that a device trusts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agridistill.errors import EdgeError

PASSWORD_VARIABLE = "AGRIDISTILL_KEY_PASSWORD"  # noqa: S105 - the variable's name
PUBLIC_SUFFIX = ".pub"
_MAX_KEY_BYTES = 10_000


class TrustedKeys:
    """Public keys by their id.

    Args:
        keys: id -> the key's 32 bytes.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self.keys = dict(keys)

    def verifies(self, identity: str, signature: bytes, message: bytes) -> bool:
        """Whether a trusted key of this id signed the message."""
        if identity not in self.keys:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.keys[identity]).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def changed(self, add: Iterable[bytes], remove: Iterable[str]) -> TrustedKeys:
        """The same keys with some more and without others."""
        removed = set(remove)
        more = {key_id(key): key for key in add}
        return TrustedKeys({name: key for name, key in (self.keys | more).items() if name not in removed})

    def __len__(self) -> int:
        return len(self.keys)


def key_id(key: bytes) -> str:
    """The first 16 hexadecimal digits of the sha256 of a public key's 32 bytes."""
    return hashlib.sha256(key).hexdigest()[:16]


def read_trusted_keys(path: Path) -> TrustedKeys:
    """Reads one public key, or every `*.pub` of a folder.

    Raises:
        EdgeError: there is none, or one that cannot be read.
    """
    files = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise EdgeError("a folder with public keys", f"'{path}' without a *{PUBLIC_SUFFIX}", "copy the publisher's")
    return TrustedKeys({key_id(key): key for key in map(read_public_key, files)})


def read_public_key(path: Path) -> bytes:
    """Reads a public key in PEM; gives its 32 bytes.

    Raises:
        EdgeError: not there, or no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise EdgeError("an Ed25519 public key in PEM", f"'{path}'", "copy the publisher's .pub file") from None
    if not isinstance(key, Ed25519PublicKey):
        raise EdgeError("an Ed25519 public key in PEM", f"another kind in '{path}'", "copy the publisher's .pub file")
    return key.public_bytes_raw()


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Reads a private key in PEM (PKCS8), with the password in AGRIDISTILL_KEY_PASSWORD where it has one.

    Raises:
        EdgeError: not there, no Ed25519 private key, or another password.
    """
    try:
        # A wrong password is a ValueError, a missing or needless one a TypeError.
        try:
            key = serialization.load_pem_private_key(_read(path), _password())
        except TypeError:
            if _password() is None:
                raise
            key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EdgeError(
            "an Ed25519 private key in PEM", f"'{path}', or another password", f"check the file and {PASSWORD_VARIABLE}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EdgeError("an Ed25519 private key in PEM", f"another kind in '{path}'", "make one with --new-key")
    return key


def create_key(path: Path) -> str:
    """Writes a new private key that only its owner may read, and its public key `PATH.pub`; gives its id.

    It is encrypted with the password in AGRIDISTILL_KEY_PASSWORD where that is set.

    Raises:
        EdgeError: one of the two files is there already: a key is never overwritten.
        OSError: they cannot be written.
    """
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, public):
        if file.exists():
            raise EdgeError("a new file for a key", f"'{file}', which exists", "name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    key, password = Ed25519PrivateKey.generate(), _password()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    # Nobody else may read it, not even in the moment before its rights could be changed.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file_out:
        file_out.write(content)
        file_out.flush()
        os.fsync(file_out.fileno())
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    return key_id(key.public_key().public_bytes_raw())


def _password() -> bytes | None:
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise EdgeError("a key's file", f"'{path}' ({error.strerror or error})", "check the path") from None
