"""Colour profiles (ICC) written by hand from published figures, and an independent conversion to sRGB."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

# Columns: XYZ of red, green and blue at D50 (Bradford), as in the profiles of Apple, Adobe and ROMM (ISO 22028-2).
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]])
# None is sRGB's curve.
SPACES = {"display-p3": (DISPLAY_P3, None), "adobe-rgb": (ADOBE_RGB, 563 / 256), "prophoto": (PROPHOTO, 1.8)}

_D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(space: str) -> bytes:
    """A profile of three primaries and a curve; "srgb" and the names of `SPACES`."""
    matrix, gamma = SPACES.get(space, (SRGB, None))
    tags = {f"{name}XYZ": _xyz(matrix[:, column]) for column, name in enumerate("rgb")}
    return _profile(b"RGB ", b"XYZ ", tags | {f"{name}TRC": _curve(gamma) for name in "rgb"}, space)


def grey_profile(gamma: float) -> bytes:
    """Grey whose light is its level to the power of gamma."""
    return _profile(b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)}, f"grey {gamma}")


def cmyk_profile(lab_of_inks: NDArray[np.float64]) -> bytes:
    """Inks by the Lab of each full overprint `(2, 2, 2, 2, 3)`, indices C, M, Y, K."""
    straight = np.arange(256, dtype=np.uint8).tobytes()
    lightness, a, b = np.moveaxis(lab_of_inks, -1, 0)
    grid = np.stack([lightness * 2.55, a + 128, b + 128], axis=-1).round().astype(np.uint8)
    matrix = b"".join(struct.pack(">i", round(65536 * value)) for value in np.eye(3).ravel())
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + straight * 4 + grid.tobytes() + straight * 3
    return _profile(b"CMYK", b"Lab ", {"A2B0": table}, "inks", kind=b"prtr")


def encode(rgb: NDArray[np.float64], space: str) -> NDArray[np.uint8]:
    """sRGB `(..., 3)`, 0 to 1 -> the same colours in another space, 8 bits."""
    matrix, gamma = SPACES[space]
    linear = np.clip(_linear(rgb, None) @ (np.linalg.inv(matrix) @ SRGB).T, 0, 1)
    return np.rint(255 * _encoded(linear, gamma)).astype(np.uint8)


def decode(levels: NDArray[np.uint8], space: str) -> NDArray[np.float64]:
    """Colours of another space, 8 bits `(..., 3)` -> sRGB, 0 to 255, clipped."""
    matrix, gamma = SPACES[space]
    linear = _linear(levels / 255, gamma) @ (np.linalg.inv(SRGB) @ matrix).T
    return 255 * _encoded(np.clip(linear, 0, 1), None)


def srgb_of_lab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE Lab at D50 `(..., 3)` -> sRGB, 0 to 255, clipped."""
    middle = (lab[..., 0] + 16) / 116
    f = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    return 255 * _encoded(np.clip(xyz @ np.linalg.inv(SRGB).T, 0, 1), None)


def _linear(values: NDArray[np.float64], gamma: float | None) -> NDArray[np.float64]:
    if gamma is not None:
        return np.asarray(values**gamma)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _encoded(values: NDArray[np.float64], gamma: float | None) -> NDArray[np.float64]:
    if gamma is not None:
        return np.asarray(values ** (1 / gamma))
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def _profile(space: bytes, connection: bytes, tags: dict[str, bytes], name: str, *, kind: bytes = b"mntr") -> bytes:
    described = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(1 + 8 + 3 + 67)
    tags = {"desc": described, "cprt": b"text" + bytes(4) + b"none\0", "wtpt": _xyz(_D50)} | tags
    table, content, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag.encode() + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(content), b"lcms", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _xyz(values: NDArray[np.float64] | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(65536 * float(value))) for value in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
    levels = np.rint(65535 * _linear(np.linspace(0, 1, 1024), None)).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(levels)) + levels.tobytes()
