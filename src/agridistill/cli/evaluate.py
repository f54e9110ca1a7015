"""`agridistill evaluate`: how good a model is on photos whose labels are known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or exported model.")],
    data: options.Data,
    split: Annotated[Literal["test", "val", "train", "all"], typer.Option("--split", help="Which photos.")] = "test",
    splits: options.Splits = None,
    json: options.Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON document to this file.")] = None,
) -> None:
    """Score a model on labelled photos.

    On the data that it was trained on, the run's own split is used.

    Other data needs train/val/test folders, --splits or --split all.
    """
    from agridistill import api
    from agridistill.storage import write_json

    with progress_bar("reading photos") as progress:
        result = api.evaluate(model, data, split=split, split_file=splits, progress=progress)
    if result.skipped:
        first = result.skipped_photos[0]
        stderr.print(f"left out: {result.skipped} unreadable photos, the first {first}", markup=False)
    if out is not None:
        write_json(out, result.to_json())
    if json:
        print_json(result.to_json())
    else:
        from agridistill.cli.tables import print_evaluation

        print_evaluation(result, title=f"{result.model} on {_photos(split)} of {data}")
    next_command("predict", model, data)


def _photos(split: str) -> str:
    return "all photos" if split == "all" else f"the {split} split"
