"""Shows where a model looked on a photo: by its attention map, or by how covering parts changes the answer."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from agridistill.arguments import to_path
from agridistill.colour import overlaid
from agridistill.errors import ConfigError, ModelError
from agridistill.manifest import Preprocessing
from agridistill.photo_files import explanation_mark
from agridistill.preprocess import Pixels, softmax
from agridistill.runtime.engines import Backend, checked_logits
from agridistill.runtime.verdict import Prediction
from agridistill.storage import replacing, write_picture

ExplanationMethod = Literal["attention", "occlusion"]

# Sizes of the covering patch in cells; a side of the photo has 14. The first patch covers an eighth of the photo, in
# 100 places. If it changes the answer of a confident network nowhere, the second covers a third of it, in 49 places.
_CELLS, _PATCHES, _BATCH = 14, (5, 8), 10
# If the probability changes by less than this, no part of the photo matters.
_FAINT = 0.05
_PANEL_PX, _MARGIN = 440, 16
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looked on one photo, as `Predictor.explain` returns it.

    `map` is `(H, W)` float32 and covers the part of the photo that the model sees (`seen`). The method "attention" (run
    folders, and files exported with attention) gives the strength of the network's features at each place, divided by
    the largest. The method "occlusion" (other models) gives, for each of 14 x 14 cells, how much the probability of the
    predicted class drops, 0 to 1, if the cell is covered with grey.
    """

    prediction: Prediction
    map: NDArray[np.float32]
    method: ExplanationMethod
    photo: Image.Image  # the whole photo, upright, RGB
    seen: tuple[int, int, int, int]  # left, top, right, bottom of the part that the model sees, in pixels of `photo`
    source: Path | None = None  # path of the photo; None if it came as bytes, an array or a Pillow image

    def save(self, path: Path | str) -> Path:
        """Writes a picture with the photo on the left and the photo coloured by the map on the right; returns its path.

        Args:
            path: `NAME.png`, `.jpg` or `.webp`; an existing file is replaced, but not the photo itself.

        Raises:
            ConfigError: `path` is not a `str` or `Path`, has another suffix, or is the photo itself.
        """
        file = to_path("path", path)
        if file.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"a file name that ends in {', '.join(_SUFFIXES)}", f"'{file}'", "change the suffix")
        if self.source is not None and file.resolve() == self.source.resolve():
            raise ConfigError("a file other than the photo itself", f"'{file}'", "choose another name")
        with replacing(file, durable=False) as temporary:
            kind = Image.registered_extensions()[file.suffix.lower()]
            marked = {"pnginfo": explanation_mark()} if kind == "PNG" else {}
            write_picture(self.picture(), temporary, kind, **marked)
        return file

    def picture(self) -> Image.Image:
        """Returns the picture that `save` writes: the prediction, the photo twice, and what the colours mean."""
        plain = self._resized(_PANEL_PX)
        width, height = plain.size
        canvas_width = max(2 * width + 3 * _MARGIN, 2 * _PANEL_PX // 3)
        above, below = (
            _text(text, size, canvas_width - 2 * _MARGIN)
            for text, size in ((self.prediction.words, 22), (self.caption, 15))
        )
        panels_top = _MARGIN + above.height
        canvas = Image.new("RGB", (canvas_width, panels_top + height + 2 * _MARGIN + below.height), "white")
        canvas.paste(above, (_MARGIN, _MARGIN))
        canvas.paste(plain, (_MARGIN, panels_top))
        canvas.paste(self._with_map(plain), (width + 2 * _MARGIN, panels_top))
        canvas.paste(below, (_MARGIN, panels_top + height + _MARGIN))
        return canvas

    def overlay(self, longest_side: int) -> Image.Image:
        """Returns the photo coloured by the map, with `longest_side` pixels on its longer side."""
        return self._with_map(self._resized(longest_side))

    def _resized(self, longest_side: int) -> Image.Image:
        scale = longest_side / max(self.photo.size)
        width, height = (max(1, round(side * scale)) for side in self.photo.size)
        return self.photo.resize((width, height), Image.Resampling.BICUBIC)

    def _with_map(self, plain: Image.Image) -> Image.Image:
        """Draws the map over the part of the photo that the model sees, and darkens the rest."""
        scale = max(plain.size) / max(self.photo.size)
        left, top, right, bottom = (round(edge * scale) for edge in self.seen)
        seen = plain.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        # A part that changes almost nothing must not be drawn as if it decided the answer.
        high = max(float(self.map.max()), _FAINT) if self.method == "occlusion" else None
        drawn = ImageEnhance.Brightness(plain).enhance(0.35)
        drawn.paste(overlaid(seen, self.map, low=0.0 if high else None, high=high), (left, top))
        return drawn

    @property
    def caption(self) -> str:
        """The text below the picture: what its colours mean for this photo."""
        outside = "" if self.seen == (0, 0, *self.photo.size) else " The model does not see the dark part."
        peak = 100 * float(self.map.max())
        if self.method == "attention":
            colours = "yellow where the network responds most, blue where it responds least (its attention map)"
        elif peak < 100 * _FAINT:
            colours = (
                "no single part decides. Covering a part of the photo with grey lowers the probability by at most "
                f"{peak:.1f} percentage points on average (occlusion test)"
            )
        else:
            colours = (
                "yellow where the answer comes from. Covering the yellowest part with grey lowers the probability by "
                f"{peak:.0f} percentage points on average (occlusion test)"
            )
        return f"Right: {colours}.{outside}"


def attention_map(backend: Backend, pixels: Pixels) -> NDArray[np.float32] | None:
    """Returns the network's attention on one photo `(S, S, 3)` uint8, as `(H, W)` float32 with largest value 1.

    Returns None if the model has no attention maps: a file that was exported without them, or a network whose features
    have no height and width.
    """
    attention = getattr(backend, "attention", None)
    if attention is None:
        return None
    try:
        return np.asarray(attention(pixels[None])[0], np.float32)
    except ModelError:
        return None


def occlusion_map(backend: Backend, pixels: Pixels, label: int) -> NDArray[np.float32]:
    """Measures how much the probability of a class drops if a part of the photo is covered with grey.

    The photo `(S, S, 3)` is divided into 14 x 14 cells. A grey patch of 5 x 5 cells covers each possible place in turn;
    the value of a cell is the mean drop over the patches that cover it. If all values stay below 0.05, the measurement
    is repeated with patches of 8 x 8 cells.

    Returns `(14, 14)` float32, 0 to 1; 0 for cells that raise the probability when they are covered.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2.
    """
    for patch in _PATCHES:
        drops = _drops(backend, pixels, label, patch)
        if drops.max() >= _FAINT:
            break
    return drops


def _drops(backend: Backend, pixels: Pixels, label: int, patch: int) -> NDArray[np.float32]:
    """Computes `occlusion_map` for patches of `patch` x `patch` cells."""
    manifest, side = backend.manifest, len(pixels)

    def probability(photos: Pixels) -> NDArray[np.float64]:
        return softmax(checked_logits(backend, photos), manifest.temperature)[:, label]

    cells = min(_CELLS, side)
    patch = min(patch, cells)
    edges = np.linspace(0, side, cells + 1).round().astype(int)
    starts = range(cells - patch + 1)
    places = [(row, column) for row in starts for column in starts]
    # The mean colour of the training photos holds the least information for the network.
    grey = (255 * np.array(manifest.preprocessing.mean)).round().clip(0, 255).astype(np.uint8)
    whole = float(probability(pixels[None])[0])
    drops, covers = np.zeros((cells, cells)), np.zeros((cells, cells))
    for start in range(0, len(places), _BATCH):
        batch = places[start : start + _BATCH]
        photos = np.repeat(pixels[None], len(batch), axis=0)
        for photo, (row, column) in zip(photos, batch, strict=True):
            photo[edges[row] : edges[row + patch], edges[column] : edges[column + patch]] = grey
        for (row, column), found in zip(batch, probability(photos), strict=True):
            drops[row : row + patch, column : column + patch] += whole - found
            covers[row : row + patch, column : column + patch] += 1
    return np.asarray((drops / covers).clip(min=0), np.float32)


def seen_part(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Returns the part of a photo that the model sees, as (left, top, right, bottom) in pixels.

    With the rule "crop" it is the square in the centre, with "stretch" the whole photo. `size` is (width, height).
    """
    width, height = size
    if preprocessing.resize != "crop":
        return 0, 0, width, height
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _text(text: str, size: int, width: int) -> Image.Image:
    """Draws black text of `size` pixels on white, wrapped to about `width` pixels."""
    lines = textwrap.wrap(text, max(1, int(width / (0.52 * size)))) or [""]
    line_height = round(1.4 * size)
    image = Image.new("RGB", (width, len(lines) * line_height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height), line, fill="black", font=font)
    return image
