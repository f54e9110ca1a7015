"""Where a model looked on a photo: its own attention, or the change of its answer where parts are covered."""

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
from agridistill.runtime.backends import AttentiveBackend, Backend, checked_logits
from agridistill.runtime.verdict import Prediction
from agridistill.storage import replacing

ExplanationMethod = Literal["attention", "occlusion"]

# Of 14 cells a side: an eighth of the photo in 100 places, and where a confident network misses none of these, a third
# of it in 49. Both take a second for a small network.
_CELLS, _PATCHES, _BATCH = 14, (5, 8), 10
# Below this change of the probability no part counts, however it compares with the others.
_FAINT = 0.05
_PANEL_PX, _MARGIN = 440, 16
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looked on one photo.

    `map` is `(H, W)` float32, at least 0, over the part of the photo that the model sees. "attention" (run folders):
    strength of the features, 1 at the strongest place, one value for each 16 px of the input. "occlusion" (exported
    files, networks without stages of maps): the drop of the answer's probability where that cell of 14 x 14 is covered,
    0 to 1.
    """

    prediction: Prediction
    map: NDArray[np.float32]
    method: ExplanationMethod
    photo: Image.Image  # whole, upright, RGB
    seen: tuple[int, int, int, int]  # left, top, right, bottom of the part that the model sees, in pixels of `photo`
    source: Path | None = None  # path of the photo; None where it came as bytes, an array or a Pillow image

    def save(self, path: Path | str, *, title: str | None = None) -> Path:
        """Writes a picture: the photo, and beside it the photo with the map over it; returns its path.

        Args:
            path: `NAME.png`, `.jpg` or `.webp`; an existing file is replaced, but never the photo itself.
            title: over the photo; class and probability where None.

        Raises:
            ConfigError: no path, another suffix, or the photo's own path.
        """
        file = to_path("path", path)
        if file.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"a picture file ({', '.join(_SUFFIXES)})", f"'{file}'", "correct the name")
        if self.source is not None and file.resolve() == self.source.resolve():
            raise ConfigError("another file than the photo", f"'{file}'", "choose another name")
        with replacing(file, durable=False) as temporary:
            kind = Image.registered_extensions()[file.suffix.lower()]
            marked = {"pnginfo": explanation_mark()} if kind == "PNG" else {}
            self.picture(title=title).save(temporary, kind, **marked)
        return file

    def picture(self, *, title: str | None = None) -> Image.Image:
        """The picture that `save` writes."""
        title = title or f"{self.prediction.label} {100 * self.prediction.probability:.0f} %"
        scale = _PANEL_PX / max(self.photo.size)
        width, height = (max(1, round(side * scale)) for side in self.photo.size)
        plain = self.photo.resize((width, height), Image.Resampling.BICUBIC)
        canvas_width = max(2 * width + 3 * _MARGIN, 2 * _PANEL_PX // 3)
        above, below = (
            _text(text, size, canvas_width - 2 * _MARGIN) for text, size in ((title, 22), (self.caption, 15))
        )
        panels_top = _MARGIN + above.height
        canvas = Image.new("RGB", (canvas_width, panels_top + height + 2 * _MARGIN + below.height), "white")
        canvas.paste(above, (_MARGIN, _MARGIN))
        canvas.paste(plain, (_MARGIN, panels_top))
        canvas.paste(self._with_map(plain, scale), (width + 2 * _MARGIN, panels_top))
        canvas.paste(below, (_MARGIN, panels_top + height + _MARGIN))
        return canvas

    def _with_map(self, plain: Image.Image, scale: float) -> Image.Image:
        """The map over the part that the model sees; the rest is dark."""
        left, top, right, bottom = (round(edge * scale) for edge in self.seen)
        seen = plain.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        # A peak that changes nothing must not look like one that decides.
        high = max(float(self.map.max()), _FAINT) if self.method == "occlusion" else None
        drawn = ImageEnhance.Brightness(plain).enhance(0.35)
        drawn.paste(overlaid(seen, self.map, low=0.0 if high else None, high=high), (left, top))
        return drawn

    @property
    def caption(self) -> str:
        """What the colours of the picture mean."""
        outside = "" if self.seen == (0, 0, *self.photo.size) else " The model does not see the dark part."
        peak = 100 * float(self.map.max())
        if self.method == "attention":
            colours = "yellow where the network finds most to see, blue where it finds least (its attention map)"
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
    """The network's own attention over one photo `(S, S, 3)` uint8, as `(H, W)` float32 with largest value 1.

    None where the model gives no maps: an exported file, or a network without stages.
    """
    if not isinstance(backend, AttentiveBackend):
        return None
    try:
        found = backend.attention(pixels[None])[0]
    except ModelError:
        return None
    peak = float(found.max())
    return np.asarray(found / peak if peak > 0 else found, np.float32)


def occlusion_map(backend: Backend, pixels: Pixels, label: int) -> NDArray[np.float32]:
    """The drop of a class's probability where a part of the photo is covered with grey.

    The photo is divided into 14 x 14 cells. A grey patch of 5 x 5 cells is laid on every place; each cell has the mean
    of the patches that cover it. Where no patch matters, patches of 8 x 8 cells are laid instead.

    Args:
        backend: the model.
        pixels: `(S, S, 3)` uint8.
        label: index of the class.

    Returns:
        One float32 for each cell, 0 to 1; where covering raises the probability, 0.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2.
    """
    for patch in _PATCHES:
        drops = _drops(backend, pixels, label, patch)
        if drops.max() >= _FAINT:
            break
    return drops


def _drops(backend: Backend, pixels: Pixels, label: int, patch: int) -> NDArray[np.float32]:
    """See `occlusion_map`, with patches of `patch` cells a side."""
    manifest, side = backend.manifest, len(pixels)

    def probability(photos: Pixels) -> NDArray[np.float64]:
        return softmax(checked_logits(backend, photos), manifest.temperature)[:, label]

    cells = min(_CELLS, side)
    patch = min(patch, cells)
    edges = np.linspace(0, side, cells + 1).round().astype(int)
    starts = range(cells - patch + 1)
    places = [(row, column) for row in starts for column in starts]
    # The mean of the photos that the network knows holds the least information for it.
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
    """The part that `to_pixels` takes of a photo of `size` (width, height): left, top, right and bottom in pixels."""
    width, height = size
    if preprocessing.resize != "crop":
        return 0, 0, width, height
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _text(text: str, size: int, width: int) -> Image.Image:
    """Black text on white, wrapped to about `width` pixels by the mean width of a letter."""
    lines = textwrap.wrap(text, max(1, int(width / (0.52 * size)))) or [""]
    line_height = round(1.4 * size)
    image = Image.new("RGB", (width, len(lines) * line_height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height), line, fill="black", font=font)
    return image
