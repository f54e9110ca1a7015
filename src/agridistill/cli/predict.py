"""`agridistill predict`: label and probability for photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, shown, stderr, stdout

if TYPE_CHECKING:
    from agridistill.runtime.predictor import PhotoResult


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, exported model, or one that comes along (tomato).")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Name the N most probable classes.")] = 1,
    json: options.Json = False,
) -> None:
    """Tell what photos show, one line a photo: an answer with its probability, or that the model is unsure, that the
    photo is unlike those that it learnt from, or that the photo is unusable and why.

    A photo that cannot be read is told on stderr, the rest goes on, and the exit code is 1.
    """
    from agridistill.api import load
    from agridistill.runtime.reading import expand

    photos = expand(images)
    predictor = load(model, photos=len(photos))
    results = predictor.predict_many(photos, top=top)
    if json:
        told: list[PhotoResult] = []
        with progress_bar("predicting") as progress:
            for result in results:
                told.append(result)
                progress(len(told), len(photos))
        failed = sum(result.prediction is None for result in told)
        print_json(_document(model, told))
    else:
        failed = 0
        for result in results:
            if result.prediction is not None:
                stdout.print(f"{shown(result.name)}: {shown(result.prediction.words)}", markup=False)
            else:
                failed += 1
                stderr.print(f"error: {shown(str(result.error))}", markup=False, style="red")
    if failed:
        stderr.print(f"{failed} of {len(photos)} photos could not be read", markup=False)
    # A device has no part that evaluates.
    next_command(*(("evaluate", model, "DATA") if model.is_dir() else ("benchmark", model)))
    if failed:
        raise typer.Exit(1)


def _document(model: Path, results: list[PhotoResult]) -> dict[str, Any]:
    photos = [
        {
            "photo": shown(result.name),
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
    errors = [
        {"photo": shown(result.name), "error": shown(result.error)} for result in results if result.error is not None
    ]
    return {"model": shown(str(model)), "photos": photos, "errors": errors}
