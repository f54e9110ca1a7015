"""TIFFs as cameras and GIS tools write them and Pillow does not: uncompressed, in one strip a plane."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RGB, GREY, WHITE_IS_ZERO = 2, 1, 0


def write_tiff(
    path: Path,
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    photometric: int = RGB,
    extra: int | None = None,
    planar: bool = False,
) -> Path:
    """Writes `(H, W, bands)`, little-endian.

    Args:
        path: to write.
        pixels: in the bits that they have.
        photometric: the meaning of the first bands.
        extra: of a further band: 0 unspecified, 1 associated alpha, 2 unassociated alpha.
        planar: one plane after the other.
    """
    height, width, bands = pixels.shape
    planes = [pixels[..., band] for band in range(bands)] if planar else [pixels]
    strips = [np.ascontiguousarray(plane).tobytes() for plane in planes]
    offsets = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    bits = 8 * pixels.dtype.itemsize
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", offsets),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
    }
    if extra is not None:
        tags[338] = ("H", [extra])
    body = b"".join(strips)
    longer, directory = b"", struct.pack("<H", len(tags))
    for tag, (code, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", 8 + len(body) + len(longer))
            longer += packed
            packed = place
        directory += struct.pack("<HHI", tag, 3 if code == "H" else 4, len(values)) + packed.ljust(4, b"\0")
    start = struct.pack("<4sI", b"II*\0", 8 + len(body) + len(longer))
    path.write_bytes(start + body + longer + directory + bytes(4))
    return path
