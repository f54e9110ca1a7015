"""A folder with photos of green and red leaves, and a served review of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.colour_backend import colour_backend, colour_photo

from agridistill.review.ranking import Order
from agridistill.review.record import ReviewLog
from agridistill.review.server import serving
from agridistill.review.site import Review
from agridistill.runtime.predictor import Predictor

CLASSES = ("green", "red")


def leaf_photos(folder: Path, count: int) -> list[str]:
    """Writes photos that are green and red in turn, with a letter at the end of each name."""
    names = [f"plot/{number:03}-{CLASSES[number % 2]}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        colour_photo(folder / name, CLASSES[number % 2], number)
    return names


def review_of(folder: Path, names: list[str], reviewer: str = "anna", **more: Any) -> Review:
    """A review of photos in a fixed order, without work in the background."""
    predictor = Predictor(colour_backend())
    order = Order({name: predictor.predict(folder / name, top=2) for name in names})
    options: dict[str, Any] = {"classes": CLASSES, "explainer": predictor} | more
    return Review(folder, order, log=ReviewLog(folder / "review.csv"), reviewer=reviewer, **options)


@contextlib.contextmanager
def served(folder: Path, names: list[str], reviewer: str = "anna", **more: Any) -> Iterator[str]:
    """Serves a review; yields the address."""
    with serving(review_of(folder, names, reviewer, **more)) as address:
        yield address
