"""Shared by all sources: the `Source` protocol, settings, errors, the reading of photos, and the login at a camera.

The login over HTTP and RTSP uses Digest with SHA-256 or MD5 (RFC 7616), else Basic. httpx's own Digest only tries the
first login method that a camera offers, and does not support RTSP.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import SplitResult, unquote

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.events import Frame
from agridistill.edge.network import basic_login
from agridistill.errors import EdgeError, OutboxError, PhotoError
from agridistill.preprocess import PhotoCost, photo_cost, read_photo

MAX_PIXELS = 25_000_000  # largest `PhotoCost.held_pixels` of a photo: decoding it takes at most 250 MB
# Only attempts to read photos that may exhaust the memory are recorded: each takes two writes to the disk.
_LARGE_PIXELS, _MAX_CRASHES = 4_000_000, 2
# If a JPEG's data ends early, its decoder fills the rest with exactly this grey, and Pillow raises no error.
_JPEG, _GREY, _LAST_PIXELS = b"\xff\xd8", 128, (slice(-2, None), slice(-8, None))
_SCHEME = re.compile(r"([!#$%&'*+.^_`|~\w-]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([\w*-]+)\s*=\s*(.*)", re.DOTALL)
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "SHA-256": hashlib.sha256,
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False),
}


class SourceLostError(EdgeError):
    """A source cannot be read now; the agent tries again, because it may come back."""


class SourceRefusedError(SourceLostError):
    """A source answers but cannot be used: it rejects user or password, or its certificate is not trusted."""


class SourceEndedError(Exception):
    """A source has no more frames, such as a video at its end."""


@dataclass(frozen=True)
class SourceSettings:
    """Settings of a source, see `WatchSettings`; each kind of source uses those that apply to it."""

    plot: str = ""
    shorter_side: int | None = None  # number of pixels that is enough, see `preprocess.read_photo`; None reads all
    every_s: float = 1.0
    after: Literal["keep", "delete"] = "keep"
    time: Literal["arrival", "photo"] = "arrival"
    username: str | None = None  # for a camera; a user in its address is used instead
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def login(self, parts: SplitResult) -> tuple[str | None, str]:
        """Returns user and password for a URL: those in the URL, else those of these settings (user None: no login)."""
        if parts.username is not None:
            return unquote(parts.username), unquote(parts.password or "") or self.password or ""
        return self.username, self.password or ""


class Source(Protocol):
    """The base of all sources: a folder, a camera or a video. Any thread may call `done` and `has_backlog`."""

    name: str  # for people and logs, without secrets
    live: bool  # frames that are not read in time are lost, as with a camera; False for files

    def open(self) -> None:
        """Opens the source, also again after a loss or `close`; raises SourceLostError if that fails."""

    def read(self, wait_s: float) -> Frame | None:
        """Returns the next frame; None if none arrives within about `wait_s` seconds.

        Raises:
            PhotoError: a photo cannot be read; the next call continues with the photo after it.
            SourceLostError: the source can no longer be read.
            SourceEndedError: the source has no more frames.
        """

    def has_backlog(self) -> bool:
        """Returns whether `read` can return several frames without a wait; may be called from any thread."""
        return False

    def is_busy(self) -> bool:
        """Returns whether `read` may still find frames among what is there already, though it returned None."""
        return False

    def is_quiet(self, quiet_s: float) -> bool:
        """Returns whether there is no new photo and nothing has changed for `quiet_s` seconds; False if unknown."""
        return False

    def done(self, frame_identity: str) -> None:
        """Called when the detection of a frame is stored, perhaps by another thread."""
        return

    def abandon(self) -> None:
        """Called when the agent ends by itself while `read` may still be at work in another thread."""
        return

    def close(self) -> None:
        """Releases the camera, connection or files of the source."""


class Attempts(Protocol):
    """Records on the disk which photos are being read, to find those that crash the agent (see `History`)."""

    def begin(self, identity: str) -> int:
        """Records that reading a photo begins; returns how many earlier attempts ended in a crash."""

    def end(self, identity: str) -> None:
        """Records that reading a photo ended without a crash of the agent."""


def login_refused(name: str, status: int, user: str | None) -> SourceRefusedError:
    """Creates the error for a camera that answers with status 401 or 403; `user` is the name that was sent, or None."""
    got = f"status {status} from {name}" + (", and no user is set" if user is None else "")
    remedy = "set AGRIDISTILL_SOURCE_USERNAME and AGRIDISTILL_SOURCE_PASSWORD, or put both into the address"
    return SourceRefusedError("a user and password that the camera accepts", got, remedy)


class PhotoReader:
    """Decodes photos with limited memory, and refuses a photo that has crashed the agent twice."""

    def __init__(self, settings: SourceSettings, attempts: Attempts | None = None) -> None:
        self._settings, self._attempts = settings, attempts
        self._begun = ""  # identity of the photo that is being read, if its attempt is recorded

    def abandon(self) -> None:
        """Records that the photo being read did not crash the agent, which ends before the photo is decoded."""
        if self._begun and self._attempts is not None:
            with contextlib.suppress(OutboxError):
                self._attempts.end(self._begun)

    def read(self, source: Path | bytes, identity: str = "") -> NDArray[np.uint8]:
        """Decodes a photo to `(H, W, 3)` uint8 RGB, upright, scaled to a shorter side of about `shorter_side` pixels.

        `identity` is the `Frame.identity` by which attempts are recorded; "" records none.

        Raises:
            UnreachablePhotoError: the file cannot be opened now (permissions, disk, network).
            PhotoError: the file is no photo, damaged or too large, or the agent crashed twice while reading it.
        """
        name = f"'{source}'" if isinstance(source, Path) else f"{len(source):,} bytes"
        cost = photo_cost(source, shorter_side=self._settings.shorter_side)
        if cost.held_pixels > MAX_PIXELS:
            raise _too_large(name, cost)
        attempts = self._attempts
        if attempts is None or not identity or cost.width * cost.height <= _LARGE_PIXELS:
            return self._decode(source, name)
        crashes = 0
        with contextlib.suppress(OutboxError):  # a full disk is no reason to skip a photo
            crashes = attempts.begin(identity)
        if crashes >= _MAX_CRASHES:
            got = f"{name} (the agent crashed twice while reading it)"
            raise PhotoError("a photo that can be read", got, "scale it down and copy it into the folder again")
        self._begun = identity
        try:
            return self._decode(source, name)
        finally:
            self._begun = ""
            with contextlib.suppress(OutboxError):
                attempts.end(identity)

    def _decode(self, source: Path | bytes, name: str) -> NDArray[np.uint8]:
        pixels = np.asarray(read_photo(source, shorter_side=self._settings.shorter_side))
        # A grey end means that data was lost, even before it; none of 13,707 complete photos had one (docs/field.md).
        is_grey = np.abs(pixels[_LAST_PIXELS].astype(np.int16) - _GREY) <= 1
        if is_grey.all() and np.ptp(pixels) > 2 and _is_jpeg(source):
            got = f"{name}, which lost some of its data"
            raise PhotoError("a complete photo", got, "check the camera and the transfer of its photos")
        return pixels


def _is_jpeg(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(_JPEG)
    with source.open("rb") as file:
        return file.read(len(_JPEG)) == _JPEG


def _too_large(name: str, cost: PhotoCost) -> PhotoError:
    got = f"{name} with {cost.width} x {cost.height} pixels"
    if cost.held_pixels > cost.width * cost.height:
        got += f", which as a WebP takes the memory of {cost.held_pixels:,} pixels"
    return PhotoError(
        f"a photo that takes the memory of at most {MAX_PIXELS:,} pixels",
        got,
        "scale it down, or save it as a JPEG that is not progressive",
    )


class Challenge(NamedTuple):
    """A login method that a server offers in a `WWW-Authenticate` header, such as Digest."""

    scheme: str  # in lower case, such as "digest"
    fields: dict[str, str]  # parameters by their name in lower case


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """Parses the values of `WWW-Authenticate` headers into login methods; one header may offer several.

    Example:
        >>> [offer.scheme for offer in challenges(['Digest realm="a, b", nonce="n", algorithm=MD5, Basic realm="c"'])]
        ['digest', 'basic']
    """
    found: list[Challenge] = []
    for header in headers:
        for item in urllib.request.parse_http_list(header):
            parameter = _PARAMETER.fullmatch(item)
            if parameter is None and (scheme := _SCHEME.fullmatch(item)):
                found.append(Challenge(scheme[1].lower(), {}))
                parameter = _PARAMETER.fullmatch(scheme[2] or "")
            if parameter is not None and found:
                found[-1].fields[parameter[1].lower()] = parameter[2].strip().removeprefix('"').removesuffix('"')
    return found


def authorization(offers: Sequence[Challenge], user: str, password: str, method: str, uri: str) -> str | None:
    """Returns the `Authorization` header for the strongest login method that is supported; None without one.

    `method` and `uri` are those of the request, exactly as they are sent. Basic sends the password in the clear, Digest
    only as a hash.
    """
    for name in _HASHES:
        for offer in offers:
            algorithm = offer.fields.get("algorithm", "MD5").upper()
            qualities = [part.strip().lower() for part in offer.fields.get("qop", "auth").split(",")]
            if offer.scheme == "digest" and algorithm.removesuffix("-SESS") == name and "auth" in qualities:
                return _digest(offer, algorithm, user, password, method, uri)
    if any(offer.scheme == "basic" for offer in offers):
        return basic_login(user, password)
    return None


def _digest(offer: Challenge, algorithm: str, user: str, password: str, method: str, uri: str) -> str:
    function = _HASHES[algorithm.removesuffix("-SESS")]

    def hashed(*parts: str) -> str:
        return str(function(":".join(parts).encode()).hexdigest())

    realm, nonce, client_nonce = offer.fields.get("realm", ""), offer.fields.get("nonce", ""), secrets.token_hex(8)
    secret, request = hashed(user, realm, password), hashed(method, uri)
    if algorithm.endswith("-SESS"):
        secret = hashed(secret, nonce, client_nonce)
    # Headers are sent as Latin-1: decoding the UTF-8 bytes as Latin-1 sends them unchanged.
    name = user.encode().decode("latin-1").replace("\\", r"\\").replace('"', r"\"")
    fields = [f'username="{name}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{uri}"']
    if "qop" in offer.fields:
        response = hashed(secret, nonce, "00000001", client_nonce, "auth", request)
        fields += ["qop=auth", "nc=00000001", f'cnonce="{client_nonce}"']
    else:
        response = hashed(secret, nonce, request)
    fields.append(f'response="{response}"')
    if "algorithm" in offer.fields:
        fields.append(f"algorithm={offer.fields['algorithm']}")
    if "opaque" in offer.fields:
        fields.append(f'opaque="{offer.fields["opaque"]}"')
    return "Digest " + ", ".join(fields)
