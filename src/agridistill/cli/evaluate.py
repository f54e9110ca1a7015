"""`agridistill evaluate`: how good a model is on photos whose labels are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from agridistill.cli import options
from agridistill.cli.after_run import print_verdict, verdict_on
from agridistill.cli.output import next_command, print_json, print_skipped, progress_bar, sibling, stderr
from agridistill.cli.tables import print_evaluation
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.progress import ProgressCallback


@options.with_groups
def evaluate(
    model: options.Model,
    data: options.Data,
    labels: options.LabelOptions,
    split: Annotated[options.SplitName, Option(help="Which photos.")] = "test",
    splits: options.Splits = None,
    map_: Annotated[
        Path | None, Option("--map", metavar="FILE", help='TOML: lines of "folder name" = "model class".')
    ] = None,
    evidence: Annotated[
        Path | None, Option(metavar="DIR", help="Also gather robustness, calibration and mistakes for `report`.")
    ] = None,
    json: options.Json = False,
    out: Annotated[Path | None, Option(help="Also write the JSON document to this file.")] = None,
) -> None:
    """Score a model on labelled photos.

    On the data that it was trained on, the run's own split is used. In a folder of new photos alone all of them count.

    Other data needs train/val/test folders, --splits or --split all. It may lack some of the model's classes.
    """
    from agridistill import api
    from agridistill.data.labels import FOLDERS
    from agridistill.evaluation.held_out import read_class_names
    from agridistill.runtime.backends import model_path
    from agridistill.storage import require_result_file, require_writable, write_json

    layout = labels.layout() or FOLDERS
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
            label_file=labels.labels,
            label_columns=layout.label_columns,
            nested=labels.nested,
            progress=progress,
        )
    if result.split == "all" != split:
        split = "all"
        stderr.print("No photo here is known to be of the model's training: all of them are used for testing.")
    print_skipped(result.skipped, result.skipped_photos[0] if result.skipped else "")
    verdict = verdict_on(result, model)
    document = result.to_json() | {"verdict": verdict.to_json()}
    if out is not None:
        write_json(out, document)
    if json:
        print_json(document)
    else:
        photos = "all photos" if split == "all" else f"the {split} split"
        print_evaluation(result, title=f"{result.model} on {photos} of {data}")
    print_verdict(verdict, json=json)
    if evidence is not None:
        # After the scores are printed: it takes minutes.
        chosen = {"layout": layout, "split": split, "split_file": splits, "class_names": names}
        with progress_bar("gathering evidence") as progress:
            _gather(model, data, evidence, result, chosen, progress)
        next_command("report", evidence)
    elif verdict.usable:
        next_command("predict", model, data)


def _gather(
    model: Path,
    data: Path,
    folder: Path,
    result: EvaluationResult,
    chosen: dict[str, Any],
    progress: ProgressCallback,
) -> None:
    """Writes everything that `report FOLDER` reads of one model; `chosen` says which photos."""
    from agridistill.api import load
    from agridistill.evaluation.evidence import gather_evidence
    from agridistill.storage import write_json

    name = sibling(model, model.name).stem
    own = model / "splits.json" if model.is_dir() else None
    write_json(folder / "evaluation.json", result.to_json())
    found = gather_evidence(load(model).backend, data, own_split=own, progress=progress, **chosen)
    write_json(folder / "evidence" / f"{name}.json", found)
    if model.is_dir():
        from agridistill.evaluation.evidence import write_gallery

        write_gallery({name: model}, data, folder / "evidence" / "gallery.json", progress=progress, **chosen)
