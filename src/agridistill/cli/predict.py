"""Classifies photos for `agridistill predict`, without importing what parses the options of a command."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agridistill.cli import output
from agridistill.cli.output import printable, stderr, stdout
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.runtime.predictor import PhotoResult, Predictor


def print_predictions(
    model: Path,
    images: Sequence[Path],
    *,
    top: int = 1,
    explain: bool = False,
    explain_out: Path | None = None,
    json: bool = False,
) -> int:
    """Prints a line for each photo; returns the exit code of the command, whose options these arguments are."""
    if explain:
        from agridistill.storage import require_writable

        require_writable(explain_out or Path(), "--explain-out", folder=True)
    # Path.exists() raises an error if a name is too long. If no photo exists at all, `expand` reports why.
    missing = [image for image in images if not os.path.exists(image)]  # noqa: PTH110
    if len(missing) == len(images):
        missing = []
    with output.progress_bar("loading the model") as progress:
        from agridistill.api import load
        from agridistill.runtime.predictor import expand

        photos = expand(image for image in images if image not in missing)
        begin(progress, "loading the model")
        predictor = load(model, photos=len(photos))
        gc.enable()
    results = predictor.predict_many(photos, top=top)
    if explain:
        results = _with_pictures(predictor, photos, results, explain_out or Path())
    if json:
        found = list(_with_progress(results, len(photos)))
        failed = sum(result.prediction is None for result in found)
        output.print_json(_document(model, found, missing))
    else:
        failed = 0
        # On a screen, the printed lines show the progress.
        for result in results if stdout.is_terminal else _with_progress(results, len(photos)):
            if result.prediction is not None:
                stdout.print(f"{printable(result.name)}: {printable(result.prediction.words)}")
            else:
                failed += 1
                stderr.print(f"error: {printable(str(result.error))}", style="red")
    if failed:
        stderr.print(f"{failed} of {len(photos)} photos could not be read")
    for image in missing:
        stderr.print(f"error: {printable(_missing(image))}", style="red")
    if failed or missing:
        return 2 if missing else 1
    # `evaluate` is not installed on a device.
    output.next_command(*(("evaluate", model, "DATA") if model.is_dir() else ("benchmark", model)))
    return 0


def _with_progress(results: Iterable[PhotoResult], total: int) -> Iterator[PhotoResult]:
    with output.progress_bar("predicting") as progress:
        for done, result in enumerate(results, start=1):
            yield result
            progress(done, total)


def _with_pictures(
    predictor: Predictor, photos: Sequence[Path], results: Iterator[PhotoResult], folder: Path
) -> Iterator[PhotoResult]:
    """Yields the same results; after each, writes a picture of where the model looked and prints its path on stderr."""
    # A picture must not replace a photo or an earlier picture of the same command.
    taken = {photo.resolve() for photo in photos}
    for photo, result in zip(photos, results, strict=True):
        yield result
        if result.prediction is None:
            continue
        number = 1
        while (file := folder / f"{photo.stem}-explained{f'-{number}' if number > 1 else ''}.png").resolve() in taken:
            number += 1
        taken.add(file.resolve())
        predictor.explain(photo).save(file)
        stderr.print(f"{printable(result.name)}: where the model looked: {printable(str(file))}")


def _missing(image: Path) -> str:
    return f"expected a photo or a folder of photos; got '{image}', which does not exist; check the path"


def _document(model: Path, results: list[PhotoResult], missing: Sequence[Path]) -> dict[str, Any]:
    photos = [
        {
            "photo": printable(result.name),
            "verdict": result.prediction.verdict,
            "reason": result.prediction.reason,
            "label": result.prediction.label,
            "probability": result.prediction.probability,
            "abstained": result.prediction.abstained,
            "unfamiliar": result.prediction.unfamiliar,
            "top": [{"label": label, "probability": probability} for label, probability in result.prediction.top],
        }
        for result in results
        if result.prediction is not None
    ]
    errors = [(result.name, result.error) for result in results if result.error is not None]
    errors += [(str(image), _missing(image)) for image in missing]
    failed = [{"photo": printable(name), "error": printable(error)} for name, error in errors]
    return {"model": printable(str(model)), "photos": photos, "errors": failed}
