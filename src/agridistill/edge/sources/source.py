"""What every source shares: its protocol, settings and errors, the reading of photos, and the login at a camera.

Login over HTTP and RTSP is by Digest with SHA-256 or MD5 (RFC 7616), else Basic. httpx's own Digest takes the first
offer of a camera only, and does not speak RTSP.
"""

from __future__ import annotations

import base64
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
from agridistill.errors import EdgeError, OutboxError, PhotoError
from agridistill.preprocess import PhotoCost, photo_cost, read_photo

MAX_PIXELS = 25_000_000
"""Of a photo, by `preprocess.PhotoCost`: they take 250 MB at most."""
# Two commits for each photo would be expensive: only photos that may exhaust the memory are recorded.
_LARGE_PIXELS, _MAX_CRASHES = 4_000_000, 2
# Where a JPEG's data ends early, its decoder fills the rest with exactly this grey, and Pillow does not report it.
_JPEG, _GREY, _LAST_PIXELS = b"\xff\xd8", 128, (slice(-2, None), slice(-8, None))
_SCHEME = re.compile(r"([!#$%&'*+.^_`|~\w-]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([\w*-]+)\s*=\s*(.*)", re.DOTALL)
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "SHA-256": hashlib.sha256,
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False),
}


class SourceLostError(EdgeError):
    """A source is away for now; it may come back."""


class SourceRefusedError(SourceLostError):
    """A source answers and refuses: a wrong user or password, or a certificate that is not trusted."""


class SourceEndedError(EdgeError):
    """A video file has ended: no frame will follow."""


@dataclass(frozen=True)
class SourceSettings:
    """How frames are taken."""

    plot: str = ""  # of all photos; in a folder, of those outside its subfolders
    shorter_side: int | None = None  # that many pixels are enough, see `preprocess.read_photo`; None takes all
    every_s: float = 1.0  # between two frames of a camera, and within a video file
    after: Literal["keep", "delete"] = "keep"  # of a folder's photo once its detection is committed
    time: Literal["arrival", "photo"] = "arrival"  # by which a folder's photo counts; "photo" is its EXIF time
    username: str | None = None  # an address with a user overrides it
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None  # authorities to trust for https; None trusts the system's

    def login(self, parts: SplitResult) -> tuple[str | None, str]:
        """User (None for none) and password of an address, else of these settings."""
        if parts.username is not None:
            return unquote(parts.username), unquote(parts.password or "") or self.password or ""
        return self.username, self.password or ""


class Source(Protocol):
    """Gives frames to one thread. Frames of a `live` source that are not taken in time are gone."""

    name: str  # for people and logs, without secrets
    live: bool

    def open(self) -> None:
        """Starts, also after a loss and after `close`; raises SourceLostError where the source is away."""

    def read(self, wait_s: float) -> Frame | None:
        """The next frame; None where none arrived within about `wait_s`.

        Raises:
            PhotoError: one photo cannot be read; the next call continues behind it.
            SourceLostError: the source went away.
            SourceEndedError: there will be no more frames.
        """

    def done(self, frame_identity: str) -> None:
        """The detection of a frame is committed. May be called from another thread."""

    def close(self) -> None:
        """Releases everything that is open."""


class Attempts(Protocol):
    """Remembers over restarts which photos were being read; `store.history.History` implements it."""

    def begin(self, identity: str) -> int:
        """Commits that reading begins; returns how often it began before without an `end`."""

    def end(self, identity: str) -> None:
        """Reading ended, successfully or not."""


def login_refused(name: str, status: int, user: str | None) -> SourceRefusedError:
    """The error for a camera's 401 or 403; `user` is the one that was sent, None for none."""
    got = f"status {status} from {name}" + (", and no user is set" if user is None else "")
    variables = "AGRIDISTILL_SOURCE_USERNAME and AGRIDISTILL_SOURCE_PASSWORD"
    return SourceRefusedError(
        "a user and password that the camera accepts", got, f"correct them ({variables}, or in the address)"
    )


class PhotoReader:
    """Decodes photos within the memory of a small device, and skips those that crash the agent again and again."""

    def __init__(self, settings: SourceSettings, attempts: Attempts | None = None) -> None:
        self._settings, self._attempts = settings, attempts

    def read(self, source: Path | bytes, identity: str = "") -> NDArray[np.uint8]:
        """The photo upright, `(H, W, 3)` uint8 RGB, of about `shorter_side`; attempts are recorded under its identity.

        Raises:
            UnreachablePhotoError: the system refuses access for now.
            PhotoError: no photo, damaged, too large, or the agent crashed twice while reading it.
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
            got = f"{name}: the agent ended twice while reading it"
            raise PhotoError("a photo that can be read", got, "scale it down and put it in again")
        try:
            return self._decode(source, name)
        finally:
            with contextlib.suppress(OutboxError):
                attempts.end(identity)

    def _decode(self, source: Path | bytes, name: str) -> NDArray[np.uint8]:
        pixels = np.asarray(read_photo(source, shorter_side=self._settings.shorter_side))
        # The grey end shows lost data, also where it was lost earlier; no whole photo of 13,707 has it (docs/field.md).
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
    got = f"{name} with {cost.width} x {cost.height}"
    if cost.held_pixels > cost.width * cost.height:
        got += f", a WebP, which takes the memory of {cost.held_pixels:,}"
    return PhotoError(
        f"a photo that takes the memory of at most {MAX_PIXELS:,} pixels",
        got,
        "scale it down, or save it as a JPEG that is not progressive",
    )


class Challenge(NamedTuple):
    """One way to log in that a server offers: the scheme in lower case, and its parameters by name in lower case."""

    scheme: str
    fields: dict[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """All offers in the values of WWW-Authenticate, also several in one header.

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
    """The value of the `Authorization` header for the strongest login method; None where none is supported.

    `method` and `uri` are those of the request as it is sent; the password is in clear with Basic only.
    """
    for name in _HASHES:
        for offer in offers:
            algorithm = offer.fields.get("algorithm", "MD5").upper()
            qualities = [part.strip().lower() for part in offer.fields.get("qop", "auth").split(",")]
            if offer.scheme == "digest" and algorithm.removesuffix("-SESS") == name and "auth" in qualities:
                return _digest(offer, algorithm, user, password, method, uri)
    if any(offer.scheme == "basic" for offer in offers):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


def _digest(offer: Challenge, algorithm: str, user: str, password: str, method: str, uri: str) -> str:
    function = _HASHES[algorithm.removesuffix("-SESS")]

    def hashed(*parts: str) -> str:
        return str(function(":".join(parts).encode()).hexdigest())

    realm, nonce, client_nonce = offer.fields.get("realm", ""), offer.fields.get("nonce", ""), secrets.token_hex(8)
    secret, request = hashed(user, realm, password), hashed(method, uri)
    if algorithm.endswith("-SESS"):
        secret = hashed(secret, nonce, client_nonce)
    # Header lines are Latin-1; the bytes of UTF-8 pass unchanged.
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
