"""`agridistill predict --explain`: a picture for each photo, of where the model looked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.cli.output import shown, stderr

if TYPE_CHECKING:
    from agridistill.runtime.predictor import PhotoResult, Predictor
    from agridistill.runtime.verdict import Prediction


def with_pictures(
    predictor: Predictor,
    photos: Sequence[Path],
    results: Iterator[PhotoResult],
    folder: Path | None,
    verdict: Callable[[Prediction], str],
) -> Iterator[PhotoResult]:
    """The same results; after each, its photo's picture is written as `NAME-explained.png` and named on stderr.

    Args:
        predictor: that gives the results.
        photos: in the order of the results.
        results: to pass on.
        folder: to write to; made where it is missing. None takes the current one.
        verdict: the title of a picture.
    """
    folder = folder or Path()
    # No picture may replace a photo, or one of this command's own.
    taken = {photo.resolve() for photo in photos}
    for photo, result in zip(photos, results, strict=True):
        yield result
        if result.prediction is None:
            continue
        file = _free(folder, photo, taken)
        taken.add(file.resolve())
        predictor.explain(photo).save(file, title=shown(verdict(result.prediction)))
        stderr.print(f"{shown(result.name)}: where the model looked: {shown(str(file))}", markup=False)


def _free(folder: Path, photo: Path, taken: set[Path]) -> Path:
    number = 1
    while (file := folder / f"{photo.stem}-explained{f'-{number}' if number > 1 else ''}.png").resolve() in taken:
        number += 1
    return file
