"""The files of a kept photo: the JPEG without its location, its sidecar, and a hash by which alike photos are found."""

from __future__ import annotations

import hashlib
import io
import re
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.edge.events import SCHEMA_VERSION, Detection, Frame, moment

Reason = Literal["unsure", "unfamiliar", "alert", "sample"]

_QUALITY = 95
_SOI, _EOI, _SOS, _EXIF, _ICC, _ADOBE, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEE, 0xFE
_APPS = range(0xE0, 0xF0)
# The marker after a scan: in its data, 0xFF is followed by 0x00 or is a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_EXIF_HEAD, _ICC_HEAD = b"Exif\0\0", b"ICC_PROFILE\0"
# What stays of the EXIF data: the camera (Make, Model), the orientation, the times with their zones, the exposure.
# Positions are also in the GPS folder, in the makers' notes, in comments, in XMP and IPTC, and in a second picture.
_IMAGE_TAGS = (0x010F, 0x0110, 0x0112, 0x0132)
_EXIF_FOLDER = 0x8769
_PHOTO_TAGS = (0x9003, 0x9004, 0x9010, 0x9011, 0x9012, 0x829A, 0x829D, 0x8827, 0x920A, 0xA001, 0xA405)


def photo_content(frame: Frame, *, location: bool) -> bytes:
    """Returns a frame as JPEG: the original file's pixels without any loss if it is a JPEG, else encoded again.

    With `location`, the original keeps its location and all other metadata.
    """
    original = _original(frame)
    if original.startswith(b"\xff\xd8"):
        content = original if location else without_location(original)
        if content is not None:
            return content
    held = io.BytesIO()
    Image.fromarray(frame.pixels).save(held, "JPEG", quality=_QUALITY)
    return held.getvalue()


def without_location(jpeg: bytes) -> bytes | None:
    """Returns a JPEG with the same pixels and colour profile, and only the harmless part of its metadata.

    Orientation, camera, times and exposure stay. Everything after the first picture is removed as well. Returns None if
    the file has no regular structure.
    """
    parts, at = [jpeg[:2]], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            break
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if end < at + 4 or end > len(jpeg) or marker == _SOI:
            return None
        if marker == _SOS:
            found = _MARKER.search(jpeg, end)
            if found is None:
                return None
            end = found.start()
            parts.append(jpeg[at:end])
        else:
            parts.append(_harmless(marker, jpeg[at:end]))
        at = end
    if jpeg[at : at + 2] != bytes((0xFF, _EOI)):
        return None
    return b"".join([*parts, jpeg[at : at + 2]])


def _harmless(marker: int, segment: bytes) -> bytes:
    body = segment[4:]
    if marker == _EXIF:
        return _reduced_exif(body) if body.startswith(_EXIF_HEAD) else b""
    is_picture = marker not in (*_APPS, _COMMENT)
    is_colour = marker in (_APPS[0], _ADOBE) or (marker == _ICC and body.startswith(_ICC_HEAD))
    return segment if is_picture or is_colour else b""


def _reduced_exif(body: bytes) -> bytes:
    reduced = Image.Exif()
    try:
        exif = Image.Exif()
        exif.load(body)
        folder = exif.get_ifd(_EXIF_FOLDER)
        reduced.update({tag: exif[tag] for tag in _IMAGE_TAGS if tag in exif})
        reduced.get_ifd(_EXIF_FOLDER).update({tag: folder[tag] for tag in _PHOTO_TAGS if tag in folder})
        content = reduced.tobytes()
        # Tags that share their bytes in the original may become longer than a segment.
        return bytes((0xFF, _EXIF)) + (len(content) + 2).to_bytes(2) + content
    except Exception:  # Pillow raises many types on damaged metadata, and then ignores the orientation, too
        return b""


def _original(frame: Frame) -> bytes:
    if frame.original is None or isinstance(frame.original, bytes):
        return frame.original or b""
    try:
        return frame.original.read_bytes()
    except OSError:  # it was moved meanwhile: the pixels are still there
        return b""


def sidecar(detection: Detection, reason: Reason, model_sha256: str, content: bytes) -> dict[str, Any]:
    """Returns the JSON document beside a kept photo (docs/schemas/kept.schema.json)."""
    at = moment(detection.at_s) or datetime.fromtimestamp(0, UTC)
    return {
        "schema": SCHEMA_VERSION,
        "event_id": detection.event_id,
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "device": detection.device,
        "plot": detection.plot,
        "verdict": detection.verdict,
        "class": detection.label,
        "probabilities": dict(detection.probabilities),
        "model_sha256": model_sha256,
        "reason": reason,
        "photo": detection.photo,
        "photo_sha256": hashlib.sha256(content).hexdigest(),
    }


def look_of(pixels: NDArray[np.uint8]) -> int:
    """Returns a hash of what a photo looks like, a signed 64-bit integer; few bits differ between alike photos.

    Each bit says whether one of 8 x 9 grey fields is brighter than the field to its left ("difference hash"). The look
    of `data.likeness` needs scipy, which devices do not have.
    """
    fields = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(fields[:, 1:] > fields[:, :-1]).tobytes(), "big", signed=True)
