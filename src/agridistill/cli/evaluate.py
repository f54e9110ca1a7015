"""`agridistill evaluate`: how good a model is on photos whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, sibling, stderr
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.data.layout import Layout
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.progress import ProgressCallback


class _Chosen(TypedDict):
    layout: Layout
    split: Literal["test", "val", "train", "all"]
    split_file: Path | None
    class_names: Mapping[str, str]


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, exported model, or one that comes along (tomato).")
    ],
    data: options.Data,
    split: Annotated[Literal["test", "val", "train", "all"], typer.Option("--split", help="Which photos.")] = "test",
    labels: options.Labels = None,
    label_columns: options.LabelColumns = None,
    nested: options.Nested = None,
    splits: options.Splits = None,
    map_: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help='TOML: lines of "folder name" = "model class".'),
    ] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(
            "--evidence", metavar="DIR", help="Also gather robustness, calibration and mistakes for `report`."
        ),
    ] = None,
    json: options.Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON document to this file.")] = None,
) -> None:
    """Score a model on labelled photos.

    On the data that it was trained on, the run's own split is used. In a folder of new photos alone all of them count.

    Other data needs train/val/test folders, --splits or --split all. It may lack some of the model's classes.
    """
    from agridistill import api
    from agridistill.cli.verdicts import print_verdict, verdict_on
    from agridistill.data.layout import FOLDERS
    from agridistill.evaluation.held_out import read_class_names
    from agridistill.runtime.shipped import model_path
    from agridistill.storage import require_result_file, require_writable, write_json

    layout = options.layout_of(labels, label_columns, nested)
    model = model_path(model)
    if out is not None:
        require_result_file(out, keys=("model", "split", "confusion_matrix"))
    if evidence is not None:
        require_writable(evidence, "--evidence", folder=True)
    names = read_class_names(map_) if map_ is not None else {}
    with progress_bar("reading photos") as progress:
        begin(progress, "loading the model")
        result = api.evaluate(
            model,
            data,
            split=split,
            split_file=splits,
            class_names=names,
            label_file=labels,
            label_columns=layout.label_columns if layout else (),
            nested=nested,
            progress=progress,
        )
    if result.split == "all" != split:
        split = "all"
        stderr.print("No photo that the model has learnt from is recognised here: all of them test it.")
    if result.skipped:
        first = result.skipped_photos[0]
        stderr.print(f"left out: {result.skipped} unreadable photos, the first {first}", markup=False)
    verdict = verdict_on(result, model)
    document = result.to_json() | {"verdict": verdict.to_json()}
    if out is not None:
        write_json(out, document)
    if json:
        print_json(document)
    else:
        from agridistill.cli.tables import print_evaluation

        print_evaluation(result, title=f"{result.model} on {_photos(split)} of {data}")
    print_verdict(verdict, json=json)
    if evidence is not None:
        # After the scores are told: it takes minutes, and they are there.
        with progress_bar("gathering evidence") as progress:
            _gather(model, data, layout or FOLDERS, split, splits, names, evidence, result, progress)
    if evidence is not None:
        next_command("report", evidence)
    elif verdict.usable:
        next_command("predict", model, data)


def _gather(
    model: Path,
    data: Path,
    layout: Layout,
    split: Literal["test", "val", "train", "all"],
    splits: Path | None,
    names: Mapping[str, str],
    folder: Path,
    result: EvaluationResult,
    progress: ProgressCallback,
) -> None:
    """Everything that `report FOLDER` reads of one model."""
    from agridistill import api
    from agridistill.evaluation.evidence import gather_evidence
    from agridistill.storage import write_json

    name = sibling(model, model.name).stem
    backend = api.load(model).backend
    own = model / "splits.json" if model.is_dir() else None
    write_json(folder / "evaluation.json", result.to_json())
    chosen: _Chosen = {"layout": layout, "split": split, "split_file": splits, "class_names": names}
    found = gather_evidence(backend, data, own_split=own, progress=progress, **chosen)
    write_json(folder / "evidence" / f"{name}.json", found)
    if model.is_dir():
        from agridistill.study.evidence import write_gallery

        file = folder / "evidence" / "gallery.json"
        write_gallery({name: model}, data, file, progress=progress, **chosen)


def _photos(split: str) -> str:
    return "all photos" if split == "all" else f"the {split} split"
