"""Where frames come from: what every source can do, and the choice of one by its text."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import SplitResult, quote, unquote, urlsplit

from agridistill.edge.events import Frame
from agridistill.errors import EdgeError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"})
_CHOICES = "a folder, http(s)://…, rtsp://…, /dev/videoN, a camera's number or a video file"
_CAMERA = re.compile(r"\d{1,3}")
_DEVICE = re.compile(r"/dev/video\d+")
_PARAMETERS = re.compile("[=&]")


class SourceLostError(EdgeError):
    """A source is away for now; it may come back."""


class SourceRefusedError(SourceLostError):
    """A source is there, and refuses: a wrong user or password, a certificate that is not trusted."""


class SourceEndedError(EdgeError):
    """A video file is through: no frame will come any more."""


@dataclass(frozen=True)
class SourceSettings:
    """How frames are taken.

    Attributes:
        plot: where the plants of all photos stand; in a folder, of those outside its subfolders.
        shorter_side: as many pixels are enough, see `preprocess.read_photo`; None takes all.
        max_pixels: photos that take the memory of more are left out, see `preprocess.PhotoCost`: a JPEG that is not
            progressive counts with what is left of it at `shorter_side`. 25 million take 250 MB at most.
        every_s: pause from one frame to the next of a camera or a snapshot, and within a video file.
        after: what becomes of a folder's photo once it is decided on.
        time: by which a folder's photo counts: when it comes, or its own EXIF time (`photo_time`).
        username: of a camera that asks for one; one in the address goes before it.
        password: never shown.
        ca_file: certificates of the authorities to trust for https; None takes the system's.
    """

    plot: str = ""
    shorter_side: int | None = None
    max_pixels: int = 25_000_000
    every_s: float = 1.0
    after: Literal["keep", "delete"] = "keep"
    time: Literal["arrival", "photo"] = "arrival"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.every_s < float("inf"):
            raise EdgeError("seconds between frames, 0 or more", str(self.every_s), "correct them")
        if self.max_pixels < 1:
            raise EdgeError("photos of 1 pixel and more", str(self.max_pixels), "correct max_pixels")
        if self.after not in ("keep", "delete"):
            raise EdgeError("photos that are kept or deleted afterwards", f"'{self.after}'", "take keep or delete")


class Source(Protocol):
    """Gives frames, one after the other, to one thread.

    Attributes:
        name: for people and logs, without secrets.
        live: frames not taken in time are gone (a camera, a snapshot); a folder or a video file waits.
    """

    name: str
    live: bool

    def open(self) -> None:
        """Gets ready; also after a loss, and after `close`.

        Raises:
            SourceLostError: it is not there.
        """

    def read(self, wait_s: float) -> Frame | None:
        """The next frame; None where none came within about `wait_s`.

        Raises:
            PhotoError: one photo cannot be read; the next call goes on behind it.
            SourceLostError: the source went away.
            SourceEndedError: there will be no more.
        """

    def done(self, frame_identity: str) -> None:
        """What was decided on a frame is on the disk. May come from another thread."""

    def close(self) -> None:
        """Lets go of everything that is open."""


class Attempts(Protocol):
    """Remembers over the agent's end which photos it was reading."""

    def begin(self, identity: str) -> int:
        """Commits that a photo is read from now on; gives how often that began before and did not end."""

    def end(self, identity: str) -> None:
        """The reading ended, well or not: nothing of it stays."""


def _keep_nothing(identity: str) -> None: ...


def open_source(
    text: str,
    *,
    settings: SourceSettings,
    seen: Callable[[str], bool],
    bad: Callable[[str], None] = _keep_nothing,
    attempts: Attempts | None = None,
) -> Source:
    """The source that a text names; it is opened later, by whoever reads it.

    Args:
        text: a folder, an `http(s)://` snapshot or MJPEG stream, an `rtsp://` stream, `/dev/videoN` or a camera's
            number, or a video file.
        settings: how frames are taken.
        seen: whether a frame of this identity was decided on in an earlier life of the agent.
        bad: called with a key for each photo of a folder that can never be decoded; `seen` has to be true of it
            from then on. The key is not the identity: what was not decided on must not be deleted.
        attempts: remembers which large photo of a folder was being read when the agent ended; None remembers none.

    Raises:
        EdgeError: none of these.
        MissingExtraError: OpenCV is needed and not installed.
    """
    if settings.ca_file is not None and not text.lower().startswith("https://"):
        raise EdgeError("an https:// source where there is a ca_file", "another source", "remove ca_file")
    if settings.time == "photo" and ("://" in text or not Path(text).is_dir()):
        raise EdgeError('a folder of photos where time = "photo"', "another source", "remove time")
    # Each kind is imported where it is asked for: they build on this module.
    if "://" in text:
        return _from_url(text, settings)
    path = Path(text)
    if text and path.is_dir():
        from agridistill.edge.sources.folder import FolderSource

        return FolderSource(path, settings, seen, bad=bad, attempts=attempts)
    is_number = _CAMERA.fullmatch(text) is not None
    if is_number or _DEVICE.fullmatch(text):
        from agridistill.edge.sources.cameras import CameraSource

        return CameraSource(int(text) if is_number else text, settings)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        from agridistill.edge.sources.cameras import VideoSource

        return VideoSource(path, settings, seen)
    raise _no_source(text)


def require_source(text: str) -> None:
    """Checks that a text names a source, as `open_source` does, before anything is made for it.

    Raises:
        EdgeError: it names none.
    """
    path = Path(text)
    is_folder, is_video = bool(text) and path.is_dir(), path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    if not ("://" in text or is_folder or is_video or _CAMERA.fullmatch(text) or _DEVICE.fullmatch(text)):
        raise _no_source(text)


def _no_source(text: str) -> EdgeError:
    missing = "" if Path(text).exists() else ", which does not exist"
    return EdgeError(_CHOICES, f"'{text}'{missing}", "check the source")


def source_identity(text: str) -> str:
    """16 hexadecimal digits by which a source is known again; no secret can be read from them.

    Args:
        text: as for `open_source`. A folder is the same one by each of its paths, an address with each user's name.
    """
    if "://" in text:
        parts = split_url(text)
        text = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    elif Path(text).exists():
        text = str(Path(text).resolve())
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def split_url(url: str) -> SplitResult:
    """A camera's address in its parts.

    Raises:
        EdgeError: it has no host, or cannot be read; without the address, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EdgeError(
            "an address such as rtsp://host/stream",
            "one without a host or with a wrong port",
            "correct it; write special signs of a password as %XX",
        )
    return parts


def public_name(parts: SplitResult) -> str:
    """An address without user, password, query and fragment, and without a path that holds parameters.

    Example:
        >>> public_name(urlsplit("http://me:secret@camera:8080/snap.jpg?token=secret"))
        'http://camera:8080/snap.jpg'
        >>> public_name(urlsplit("rtsp://10.0.0.5/user=admin&password=secret&channel=1"))
        'rtsp://10.0.0.5/…'
    """
    # An @ in the path is what is left of a password with a slash in it.
    path = "" if "@" in parts.path else "/…" if _PARAMETERS.search(unquote(parts.path)) else parts.path
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def credentials(parts: SplitResult, settings: SourceSettings) -> tuple[str | None, str]:
    """User and password of an address, else of the settings; no user where there is none."""
    if parts.username is not None:
        return unquote(parts.username), unquote(parts.password or "") or settings.password or ""
    return settings.username, settings.password or ""


def refused(name: str, status: int, user: str | None) -> SourceRefusedError:
    """What a 401 or 403 of a camera means.

    Args:
        name: of the source.
        status: that the camera answered with.
        user: that it was given; None for none.
    """
    got = f"status {status} from {name}" + (", and no user is set" if user is None else "")
    variables = "AGRIDISTILL_SOURCE_USERNAME and AGRIDISTILL_SOURCE_PASSWORD"
    return SourceRefusedError(
        "a user and password that the camera accepts", got, f"correct them ({variables}, or in the address)"
    )


def with_credentials(parts: SplitResult, settings: SourceSettings) -> str:
    """The address as a stream's reader takes it, with user and password inside."""
    user, password = credentials(parts, settings)
    if user is None:
        return parts.geturl()
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()


def _from_url(text: str, settings: SourceSettings) -> Source:
    parts = split_url(text)
    if parts.scheme in ("http", "https"):
        from agridistill.edge.sources.snapshots import SnapshotSource

        return SnapshotSource(text, settings)
    if parts.scheme in ("rtsp", "rtsps"):
        from agridistill.edge.sources.cameras import CameraSource

        return CameraSource(text, settings)
    raise EdgeError(_CHOICES, f"an address with {parts.scheme}://", "check the source")
