"""Attention maps laid over their photos."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from agridistill.heatmaps import overlaid


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
    held = io.BytesIO()
    overlaid(picture, np.array(attention, np.float32)).save(held, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
