"""HEIC, the format of iPhones: read through Pillow where the extra `heic` (pi-heif) is installed."""

from __future__ import annotations

import re
import struct
from pathlib import Path

try:
    import pi_heif
except ImportError:  # not installed, or its library does not load on this machine
    READS_HEIC = False
else:
    pi_heif.register_heif_opener()
    READS_HEIC = True

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
INSTALL_HEIC = "pip install 'agridistill[heic]'"
_HEAD_BYTES = 64
_BRANDS = (b"heic", b"heix", b"hevc", b"hevx")
# The box that holds the size of each picture in a file.
_SIZE_BOX, _SIZE = re.compile(rb"ispe\0\0\0\0"), struct.Struct(">II")


def is_heic(source: Path | bytes) -> bool:
    """Whether a file's content is HEIC, whatever its name: phones and mail programs give it the suffix .jpg, too.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        with source.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    return head[4:8] == b"ftyp" and any(brand in head for brand in _BRANDS)


def heic_pixels(source: Path | bytes) -> int:
    """The pixels of the largest picture in a HEIC file.

    It is decoded whole before the part is cut out of it that Pillow knows the size of.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    sizes = (_SIZE.unpack_from(content, found.end()) for found in _SIZE_BOX.finditer(content[: -_SIZE.size]))
    return max((width * height for width, height in sizes), default=0)
