"""A release: what a new model consists of, signed. What is not signed is never believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agridistill.edge.updates.keys import TrustedKeys, key_id
from agridistill.errors import EdgeError

RELEASE_NAME = "release.json"
MAX_RELEASE_BYTES = 1_000_000
MODEL_SUFFIXES = (".onnx", ".tflite")
# A signature made for anything else, by the same key, is none of a release.
_SIGNED_PREFIX = b"agridistill-model release v1\n"
_MAX_SIGNATURES = 16

# One file in the release's own folder, on every file system: no separator, no leading dot or dash.
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=100)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_KeyBytes = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RefusedError(EdgeError):
    """A release that must not be installed: not signed, not whole, not newer, or not as good as it says."""


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReleaseFile(_Signed):
    """One file of a release.

    Attributes:
        name: plain, in the release's folder `vVERSION`.
        size_bytes: of its content.
        sha256: of its content, lower-case hex.
    """

    name: PlainName
    size_bytes: int = Field(ge=0)
    sha256: _Sha256


class GoldenPhoto(_Signed):
    """A photo whose answer is known.

    Attributes:
        photo: one of the release's files.
        label: what the model has to answer.
    """

    photo: PlainName
    label: str


class TrustChange(_Signed):
    """Keys that count from this release on.

    Attributes:
        add: public keys, 32 bytes each, in hex.
        remove: ids of keys that count no more.
    """

    add: tuple[_KeyBytes, ...] = Field(default=(), max_length=_MAX_SIGNATURES)
    remove: tuple[_KeyId, ...] = Field(default=(), max_length=100)


class Release(_Signed):
    """What is signed.

    Attributes:
        version: grows from release to release.
        created: when it was signed.
        channel: devices take the releases of one channel; so one key can serve several crops.
        files: all that is downloaded.
        model: which of them is the artefact; `NAME.json`, its manifest, is one of them, too.
        classes: of the model, in the order of its logits.
        golden: photos that the new model has to answer on the device before it is used.
        minimum_agreement: share of them that it has to get right, above 0 to 1.
        base_url: where the folder `vVERSION` lies, for releases that come by MQTT; "" where it lies beside this file.
        trust: keys to add and to remove.
    """

    product: Literal["agridistill-model"] = "agridistill-model"
    format_version: Literal[1] = 1
    version: int = Field(ge=1, le=2**53)
    created: AwareDatetime
    channel: PlainName = "default"
    files: tuple[ReleaseFile, ...] = Field(min_length=2, max_length=1000)
    model: PlainName
    classes: tuple[str, ...] = Field(min_length=2)
    golden: tuple[GoldenPhoto, ...] = Field(min_length=1)
    minimum_agreement: float = Field(gt=0, le=1)
    base_url: str = Field(default="", pattern=r"^(https?://[!-~]+/)?$", max_length=2000)
    trust: TrustChange = TrustChange()

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        names = [file.name for file in self.files]
        for holds, wanted in (
            # Some file systems take two names that differ in case for one.
            (len({name.lower() for name in names}) == len(names), "each file named once"),
            (not any(name.lower() == RELEASE_NAME or name.endswith(".part") for name in names), "other file names"),
            (PurePath(self.model).suffix in MODEL_SUFFIXES and self.model in names, "its model among its files"),
            (self.manifest in names, "the model's manifest among its files"),
            (all(golden.photo in names for golden in self.golden), "its golden photos among its files"),
            (all(golden.label in self.classes for golden in self.golden), "golden labels that are classes"),
            (not {key_id(bytes.fromhex(key)) for key in self.trust.add} & set(self.trust.remove), "one word on a key"),
        ):
            if not holds:
                raise ValueError(f"a release needs {wanted}")
        return self

    @property
    def manifest(self) -> str:
        """Name of the model's manifest."""
        return PurePath(self.model).with_suffix(".json").name

    @property
    def folder(self) -> str:
        """Name of the folder that holds its files, beside `release.json`."""
        return f"v{self.version}"

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)


def signed_release(release: Release, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The content of `release.json`.

    Args:
        release: what to sign.
        keys: a signature of each is written; a device needs one that it trusts.
    """
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
    """Reads a `release.json`; its payload is looked at only after its signature was checked.

    Raises:
        RefusedError: too large, damaged, signed by no trusted key, or of another format.
    """
    payload, signatures = _opened(envelope)
    for signature in signatures:
        if keys.verifies(signature["key_id"], signature["signature"], _SIGNED_PREFIX + payload):
            return _release(payload)
    signers = ", ".join(signature["key_id"] for signature in signatures) or "nobody"
    raise RefusedError(
        "a release signed by a trusted key", f"one signed by {signers}, or changed since", "sign it with a trusted key"
    )


def stored_release(envelope: bytes) -> Release:
    """Reads a `release.json` whose signature was checked when it was stored; the key may have gone since.

    Raises:
        RefusedError: damaged.
    """
    return _release(_opened(envelope)[0])


def _opened(envelope: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    try:
        if len(envelope) > MAX_RELEASE_BYTES:
            raise ValueError(f"more than {MAX_RELEASE_BYTES:,} bytes")
        document = json.loads(envelope.decode("utf-8"))
        payload = base64.b64decode(document["payload"], validate=True)
        signatures = [
            {"key_id": _text(found["key_id"]), "signature": base64.b64decode(found["signature"], validate=True)}
            for found in document["signatures"][:_MAX_SIGNATURES]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        got = f"'{type(error).__name__}: {str(error)[:100]}'"
        raise RefusedError("a signed release", got, "publish it again") from None
    return payload, signatures


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise ValueError("no key id")
    return value


def _release(payload: bytes) -> Release:
    try:
        return Release.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "release"
        raise RefusedError(
            "a release that this version can read", f"{where}: {first['msg'][:200]}", "publish it again"
        ) from None
