"""`agridistill predict`: label and probability for photos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, shown, stderr, stdout
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.runtime.predictor import PhotoResult


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, exported model, or one that comes along (tomato).")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Name the N most probable classes.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Write NAME-explained.png for each photo: where the model looked.")
    ] = False,
    explain_out: Annotated[
        Path | None, typer.Option("--explain-out", metavar="FOLDER", help="Where --explain writes; here otherwise.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Tell what photos show, one line a photo: an answer with its probability, or that the model is unsure, that the
    photo is unlike those that it learnt from, or that the photo is unusable and why.

    A photo that cannot be read or is not there is told on stderr, and the rest goes on; the exit code is then 1, or 2
    where one is not there.
    """
    if explain or explain_out is not None:
        from agridistill.storage import require_writable

        require_writable(explain_out or Path(), "--explain-out", folder=True)
    # Not Path.exists(), which raises where a name is too long. Where nothing is there, `expand` tells why.
    missing = [image for image in images if not os.path.exists(image)]  # noqa: PTH110
    if len(missing) == len(images):
        missing = []
    with progress_bar("loading the model") as progress:
        from agridistill.api import load
        from agridistill.runtime.reading import expand

        photos = expand(image for image in images if image not in missing)
        begin(progress, "loading the model")
        predictor = load(model, photos=len(photos))
    results = predictor.predict_many(photos, top=top)
    if explain or explain_out is not None:
        from agridistill.cli.explain import with_pictures

        results = with_pictures(predictor, photos, results, explain_out, lambda prediction: prediction.words)
    if json:
        told = list(_with_progress(results, len(photos)))
        failed = sum(result.prediction is None for result in told)
        print_json(_document(model, told, missing))
    else:
        failed = 0
        # On a screen the lines themselves show how far it is.
        for result in results if stdout.is_terminal else _with_progress(results, len(photos)):
            if result.prediction is not None:
                stdout.print(f"{shown(result.name)}: {shown(result.prediction.words)}", markup=False)
            else:
                failed += 1
                stderr.print(f"error: {shown(str(result.error))}", markup=False, style="red")
    if failed:
        stderr.print(f"{failed} of {len(photos)} photos could not be read", markup=False)
    for image in missing:
        stderr.print(f"error: {shown(_missing(image))}", markup=False, style="red")
    if failed or missing:
        raise typer.Exit(2 if missing else 1)
    # A device has no part that evaluates.
    next_command(*(("evaluate", model, "DATA") if model.is_dir() else ("benchmark", model)))


def _with_progress(results: Iterable[PhotoResult], total: int) -> Iterator[PhotoResult]:
    with progress_bar("predicting") as progress:
        for done, result in enumerate(results, start=1):
            yield result
            progress(done, total)


def _missing(image: Path) -> str:
    return f"expected a photo or a folder of photos; got '{image}', which does not exist; check the path"


def _document(model: Path, results: list[PhotoResult], missing: Sequence[Path]) -> dict[str, Any]:
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
    ] + [{"photo": shown(str(image)), "error": shown(_missing(image))} for image in missing]
    return {"model": shown(str(model)), "photos": photos, "errors": errors}
