"""A release: the signed description of a new model's files (Ed25519). A device uses nothing that is not signed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agridistill.errors import EdgeError
from agridistill.manifest import sha256_of
from agridistill.runtime.engines import SUFFIXES

RELEASE_NAME = "release.json"
MAX_RELEASE_BYTES, MAX_FILE_BYTES = 1_000_000, 500_000_000
PASSWORD_VARIABLE = "AGRIDISTILL_KEY_PASSWORD"  # noqa: S105 - the variable's name
PUBLIC_SUFFIX = ".pub"
# Signed before the payload, so that a signature which the key made for other data is not valid for a release.
_SIGNED_PREFIX = b"agridistill-model release v1\n"

# Safe as a file name in one folder on every file system: no separator, no leading dot or dash.
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=100)]
_32Bytes = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class RefusedError(EdgeError):
    """A release must not be installed: it is unsigned, damaged or old, or its model fails on this device."""


class UnavailableError(EdgeError):
    """A release cannot be downloaded or tested now, for example without a network; a later try may succeed."""


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReleaseFile(_Signed):
    """Name, size and sha256 of one file of a release; devices download it from `vVERSION/NAME`."""

    name: PlainName
    size_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: _32Bytes

    def is_intact(self, path: Path) -> bool:
        """Whether the file at `path` can be read and has the signed size and sha256."""
        try:
            return path.stat().st_size == self.size_bytes and sha256_of(path) == self.sha256
        except OSError:
            return False


class GoldenPhoto(_Signed):
    """A photo that tests the model on a device (the name of one of the release's files), and the expected label."""

    photo: PlainName
    label: str


class TrustChange(_Signed):
    """Signing keys that a device starts or stops trusting when it installs the release."""

    add: tuple[_32Bytes, ...] = Field(default=(), max_length=16)  # public keys in hex
    remove: tuple[_KeyId, ...] = Field(default=(), max_length=100)  # ids of keys


class Release(_Signed):
    """The signed content of `release.json`: a model's version and files, and the golden photos that test it."""

    product: Literal["agridistill-model"] = "agridistill-model"
    format_version: Literal[1] = 1
    version: int = Field(ge=1, le=2**53)  # grows from release to release
    created: AwareDatetime
    channel: PlainName = "default"  # a device only takes releases of its channel, so a key can serve several crops
    files: tuple[ReleaseFile, ...] = Field(min_length=2, max_length=1000)
    model: PlainName  # one of the files; its manifest `NAME.json` is another
    classes: tuple[str, ...] = Field(min_length=2)  # in the order of the model's logits
    golden: tuple[GoldenPhoto, ...] = Field(min_length=1)
    minimum_agreement: float = Field(gt=0, le=1)  # share of golden photos that the model must answer right on a device
    # URL that contains the folder `vVERSION`, needed for releases that come by MQTT; "" if it is next to this file.
    base_url: str = Field(default="", pattern=r"^(https?://[!-~]+/)?$", max_length=2000)
    trust: TrustChange = TrustChange()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [file.name for file in self.files]
        for holds, expected in (
            # Some file systems ignore case.
            (len({name.lower() for name in names}) == len(names), "files with different names"),
            (
                not any(name.lower() == RELEASE_NAME or name.endswith(".part") for name in names),
                f"file names other than {RELEASE_NAME} and *.part",
            ),
            (PurePath(self.model).suffix in SUFFIXES and self.model in names, "its model among its files"),
            (self.manifest in names, "the model's manifest among its files"),
            (all(golden.photo in names for golden in self.golden), "its golden photos among its files"),
            (all(golden.label in self.classes for golden in self.golden), "golden labels that are classes"),
            (
                not {key_id(bytes.fromhex(key)) for key in self.trust.add} & set(self.trust.remove),
                "keys that are either added or removed, not both",
            ),
        ):
            if not holds:
                raise ValueError(f"a release needs {expected}")
        return self

    @property
    def manifest(self) -> str:
        """File name of the model's manifest: `NAME.json` for the model `NAME.onnx`."""
        return PurePath(self.model).with_suffix(".json").name

    @property
    def folder(self) -> str:
        """Name of the folder that holds the release's files, `vVERSION`; it is next to `release.json`."""
        return f"v{self.version}"

    @property
    def size_bytes(self) -> int:
        """Total size of all files, in bytes."""
        return sum(file.size_bytes for file in self.files)


class _Signature(_Signed):
    key_id: _KeyId
    signature: Base64Bytes


class _Envelope(_Signed):
    payload: Base64Bytes
    signatures: tuple[_Signature, ...]


_Kind = TypeVar("_Kind", Release, _Envelope)


def signed_release(release: Release, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """Signs a release with each key, and returns the content of `release.json`; a device must trust one of the keys."""
    payload = release.model_dump_json().encode()
    signatures = [
        {
            "key_id": key_id(key.public_key().public_bytes_raw()),
            "signature": base64.b64encode(key.sign(_SIGNED_PREFIX + payload)).decode(),
        }
        for key in keys
    ]
    envelope = {"payload": base64.b64encode(payload).decode(), "signatures": signatures}
    return (json.dumps(envelope, indent=2) + "\n").encode()


def verified_release(envelope: bytes, keys: TrustedKeys) -> Release:
    """Parses the content of a `release.json` after verifying that one of `keys` signed it.

    Raises:
        RefusedError: the content is larger than 1 MB, damaged, of another format version, or not signed by a key.
    """
    found = _opened(envelope)
    signed = _SIGNED_PREFIX + found.payload
    if not any(keys.verifies(one.key_id, one.signature, signed) for one in found.signatures):
        signers = ", ".join(one.key_id for one in found.signatures) or "no key"
        raise RefusedError(
            "a release signed by a trusted key",
            f"a release signed by {signers[:300]}, or changed after it was signed",
            "publish it again with a trusted --key",
        )
    return _parsed(Release, found.payload)


def stored_release(envelope: bytes) -> Release:
    """Parses the content of a `release.json` that this device has stored, without verifying its signature again.

    It was verified before it was stored, and its key may have been revoked since then. Raises RefusedError if it is
    damaged.
    """
    return _parsed(Release, _opened(envelope).payload)


def _opened(envelope: bytes) -> _Envelope:
    if len(envelope) > MAX_RELEASE_BYTES:
        raise RefusedError(
            f"a {RELEASE_NAME} of at most {MAX_RELEASE_BYTES:,} bytes",
            f"{len(envelope):,} bytes or more",
            "publish it again with fewer golden photos",
        )
    return _parsed(_Envelope, envelope)


def _parsed(kind: type[_Kind], content: bytes) -> _Kind:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RefusedError("a release that this AgriDistill can read", problem_of(error), "publish it again") from None


def problem_of(error: ValidationError) -> str:
    """Returns a text for messages: the first invalid field of a release, its value, and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "release"
    return f"{where} {first['input']!r:.100}: {first['msg'][:200]}"


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose releases a device installs."""

    keys: Mapping[str, bytes]  # {id: key of 32 bytes}

    def verifies(self, identity: str, signature: bytes, message: bytes) -> bool:
        """Whether the trusted key with the id `identity` has signed `message`; False if no trusted key has this id."""
        try:
            Ed25519PublicKey.from_public_bytes(self.keys[identity]).verify(signature, message)
        except (KeyError, InvalidSignature, ValueError):
            return False
        return True

    def changed(self, add: Iterable[bytes], remove: Iterable[str]) -> TrustedKeys:
        """Returns a copy with the public keys `add` (32 bytes each) and without those whose ids are in `remove`."""
        keys = {**self.keys, **{key_id(key): key for key in add}}
        removed = set(remove)
        return TrustedKeys({name: key for name, key in keys.items() if name not in removed})


def key_id(key: bytes) -> str:
    """Returns a key's id: the first 16 hexadecimal digits of the sha256 of the public key's 32 bytes."""
    return hashlib.sha256(key).hexdigest()[:16]


def read_trusted_keys(path: Path) -> TrustedKeys:
    """Reads one file, or all `*.pub` files of a folder; raises EdgeError if there is no key."""
    files = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise EdgeError(
            "a folder with public keys", f"'{path}' without a *.pub file", "copy the publisher's .pub file there"
        )
    return TrustedKeys({key_id(key): key for key in map(read_public_key, files)})


def read_public_key(path: Path) -> bytes:
    """Returns the 32 bytes of an Ed25519 public key in PEM; raises EdgeError for another file."""
    content, key = _read_key(path), None
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(content)
    if not isinstance(key, Ed25519PublicKey):
        raise EdgeError(
            "an Ed25519 public key in PEM", f"'{path}', which contains something else", "copy the publisher's .pub file"
        )
    return key.public_bytes_raw()


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Reads an Ed25519 private key from a PEM file (PKCS8).

    If it is encrypted, the environment variable AGRIDISTILL_KEY_PASSWORD must hold its password. Raises EdgeError if
    the file contains something else or needs another password.
    """
    content = _read_key(path)
    for password in (_password(), None):  # a password for a key without one raises TypeError
        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key = serialization.load_pem_private_key(content, password)
            if isinstance(key, Ed25519PrivateKey):
                return key
    raise EdgeError(
        "an Ed25519 private key in PEM",
        f"'{path}', which contains something else or needs another password",
        f"check the file and the environment variable {PASSWORD_VARIABLE}",
    )


def create_key(path: Path) -> str:
    """Creates a private key at `path`, which only its owner can read, and a public key `PATH.pub`; returns their id.

    If the environment variable AGRIDISTILL_KEY_PASSWORD is set, it is the password that encrypts the private key.

    Raises:
        EdgeError: one of the two files exists already; a key is never overwritten.
        OSError: the files cannot be written.
    """
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, public):
        if file.exists():
            raise EdgeError("a new file for a key", f"'{file}', which exists already", "name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    key, password = Ed25519PrivateKey.generate(), _password()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    # The file is created with its final rights: no other user can read it, not even for a moment.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file_out:
        file_out.write(content)
        file_out.flush()
        os.fsync(file_out.fileno())
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    return key_id(key.public_key().public_bytes_raw())


def _password() -> bytes | None:
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeError("a readable key file", f"'{path}' ({error.strerror or error})", "check the path") from None
