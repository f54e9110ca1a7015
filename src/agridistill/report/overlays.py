"""Attention maps laid over their photos."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image

_STRENGTH = 0.55


def overlay(photo: str, attention: Sequence[Sequence[float]]) -> str:
    """A photo with a map over it: yellow where a model looks, blue where it does not.

    Args:
        photo: data URI of a JPEG.
        attention: rows of values, of any scale.

    Returns:
        Data URI of a JPEG of the same size.
    """
    encoded = photo.partition("base64,")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("JPEG",)).convert("RGB")
    values = np.array(attention, np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.array(Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = Image.fromarray((colormaps["cividis"](smooth)[:, :, :3] * 255).astype(np.uint8))
    held = io.BytesIO()
    Image.blend(picture, colours, _STRENGTH).save(held, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
