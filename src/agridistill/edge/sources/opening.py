"""From a text in the settings to a source."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from agridistill.edge.sources.folder import FolderSource
from agridistill.edge.sources.source import Attempts, Source, SourceSettings
from agridistill.edge.urls import split_url, without_user
from agridistill.errors import EdgeError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"})
_CHOICES = "a folder, http(s)://…, rtsp://…, /dev/videoN, a camera's number or a video file"
_NUMBER, _DEVICE = re.compile(r"\d{1,3}"), re.compile(r"/dev/video\d+")


def open_source(
    text: str,
    *,
    settings: SourceSettings,
    seen: Callable[[str], bool],
    bad: Callable[[str], None] = lambda key: None,
    attempts: Attempts | None = None,
) -> Source:
    """Creates the source that a text names; its reader opens it.

    Args:
        text: a folder, an `http(s)://` snapshot or MJPEG stream, an `rtsp://` stream, `/dev/videoN` or a camera's
            number, or a video file.
        settings: how frames are taken.
        seen: whether a frame of this identity was decided on before.
        bad: called with a key for each photo of a folder that can never be decoded; `seen` has to return true for it
            from then on. It differs from the identity: what was not decided on must not be deleted.
        attempts: records which large photo is being read; None records nothing.

    Raises:
        EdgeError: none of these.
        MissingExtraError: OpenCV is needed and not installed.
    """
    if settings.ca_file is not None and not text.lower().startswith("https://"):
        raise EdgeError("an https:// source where there is a ca_file", "another source", "remove ca_file")
    path = Path(text)
    if settings.time == "photo" and ("://" in text or not path.is_dir()):
        raise EdgeError('a folder of photos where time = "photo"', "another source", "remove time")
    kind = _kind(text)
    if kind == "folder":
        return FolderSource(path, settings, seen, bad=bad, attempts=attempts)
    # OpenCV and httpx take time and memory to import; a folder needs neither.
    if kind == "http":
        from agridistill.edge.sources.snapshots import SnapshotSource

        return SnapshotSource(text, settings)
    from agridistill.edge.sources.cameras import CameraSource, VideoSource

    if kind == "video":
        return VideoSource(path, settings, seen)
    return CameraSource(int(text) if kind == "number" else text, settings)


def require_source(text: str) -> None:
    """Checks that a text names a source, before anything is created for it.

    Raises:
        EdgeError: it names none.
    """
    if "://" not in text:
        _kind(text)


def source_identity(text: str) -> str:
    """16 hexadecimal digits, the same for each path of a folder and each user of an address; they reveal no secret."""
    if "://" in text:
        text = without_user(split_url(text)).geturl()
    elif Path(text).exists():
        text = str(Path(text).resolve())
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _kind(text: str) -> str:
    if "://" in text:
        scheme = split_url(text).scheme
        if scheme in ("http", "https"):
            return "http"
        if scheme in ("rtsp", "rtsps"):
            return "stream"
        raise EdgeError(_CHOICES, f"an address with {scheme}://", "check the source")
    path = Path(text)
    if text and path.is_dir():
        return "folder"
    if _NUMBER.fullmatch(text):
        return "number"
    if _DEVICE.fullmatch(text):
        return "device"
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return "video"
    missing = "" if path.exists() else ", which does not exist"
    raise EdgeError(_CHOICES, f"'{text}'{missing}", "check the source")
