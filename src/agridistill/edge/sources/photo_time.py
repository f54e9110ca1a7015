"""When a photo was taken, by its own EXIF: photos of a card or a drone come days later, and all at once."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from agridistill.photo_files import READS_HEIC

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", *(("HEIF",) if READS_HEIC else ()))
_EXIF_FOLDER = 0x8769
# When it was taken, when it was digitised, when the file was written, each with the tag of its zone.
_TAGS = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
_TIME = re.compile(r"(\d{4})\D(\d\d)\D(\d\d)[ T](\d\d)\D(\d\d)\D(\d\d)")
_ZONE = re.compile(r"([+-])(\d\d):?(\d\d)")
# Clocks that were never set begin at 1970, 1980 or 2000.
_EARLIEST_YEAR = 2010
# Clocks of camera and device differ a little.
_SLACK_S = 300.0


class PhotoTime(NamedTuple):
    """When a photo was taken.

    Attributes:
        at_s: seconds since 1970; None where it is not known.
        problem: why it is not known, in words; "" where it is.
    """

    at_s: float | None
    problem: str = ""


def photo_time(path: Path, now_s: float) -> PhotoTime:
    """When a photo was taken, by its EXIF.

    A time without a zone is the device's local time. One before 2010 or in the future is none: the camera's clock was
    not set, or stood wrong.

    Args:
        path: of a photo.
        now_s: seconds since 1970 by the device's clock.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            texts = _texts(image)
    except Exception:  # Pillow's readers raise many types on damaged metadata; the pixels may be whole all the same
        texts = []
    found = next((moment for text in texts if (moment := _moment(*text)) is not None), None)
    if found is None:
        return PhotoTime(None, "no EXIF time")
    if found.year < _EARLIEST_YEAR:
        return PhotoTime(None, f"an EXIF time before {_EARLIEST_YEAR}")
    if found.timestamp() > now_s + _SLACK_S:
        return PhotoTime(None, "an EXIF time in the future")
    return PhotoTime(min(found.timestamp(), now_s))


def _texts(image: Image.Image) -> list[tuple[str, str]]:
    """Times and zones as they are written, the best first."""
    exif = image.getexif()
    tags = {**exif, **exif.get_ifd(_EXIF_FOLDER)}
    return [(str(tags.get(time, "")), str(tags.get(zone, ""))) for time, zone in _TAGS]


def _moment(text: str, zone: str) -> datetime | None:
    numbers = _TIME.match(text.strip("\0 "))
    if numbers is None:
        return None
    try:
        local = datetime(*map(int, numbers.groups()))  # type: ignore[arg-type] # noqa: DTZ001 # its zone comes next
        if offset := _ZONE.match(zone.strip("\0 ")):
            size = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
            return local.replace(tzinfo=timezone(-size if offset[1] == "-" else size))
        return local.replace(tzinfo=UTC) if zone.strip("\0 ").upper() == "Z" else local.astimezone()
    except (ValueError, OverflowError, OSError):  # such as 0000:00:00, which unset cameras write
        return None
