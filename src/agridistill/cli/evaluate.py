"""The command `agridistill evaluate`, which measures how well a model classifies labelled photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Option

from agridistill.cli import options, output
from agridistill.cli.export import print_verdict, verdict_on
from agridistill.cli.output import UNDEFINED, count, percent, printable, stderr, stdout
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.progress import ProgressCallback

_MAX_MATRIX = 15  # number of classes up to which a confusion matrix is printed
_CONFUSIONS = 10


@options.with_groups
def evaluate(
    model: options.Model,
    data: options.Data,
    labels: options.LabelOptions,
    split: Annotated[options.SplitName, Option(help="Evaluate the photos of this split.")] = "test",
    splits: options.Splits = None,
    map_: Annotated[
        Path | None,
        Option(
            "--map",
            metavar="FILE",
            help='Read from this TOML file which class a folder holds; a line is "folder name" = "model class".',
        ),
    ] = None,
    evidence: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also write robustness, calibration and mistakes to this folder, for `report`."),
    ] = None,
    json: options.Json = False,
    out: Annotated[Path | None, Option(help="Also write the result to this file as JSON.")] = None,
) -> None:
    """Measure how well a model classifies labelled photos.

    The split comes from --splits; without it, from the training run if the model was trained on this data; otherwise
    from train/val/test folders. Without any split, all photos are evaluated if the model has certainly not learnt from
    them; if that is not known, pass --split all.

    Classes of the model that have no photos in the data get no scores.
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
    with output.progress_bar("reading photos") as progress:
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
        stderr.print("None of these photos is known to be from the model's training: all of them are used for testing.")
    output.print_skipped(result.skipped, result.skipped_photos[0] if result.skipped else "")
    verdict = verdict_on(result, model)
    document = result.to_json() | {"verdict": verdict.to_json()}
    if out is not None:
        write_json(out, document)
    if json:
        output.print_json(document)
    else:
        photos = "all photos" if split == "all" else f"the {split} split"
        print_evaluation(result, title=f"{result.model} on {photos} of {data}")
    print_verdict(verdict, json=json)
    if evidence is not None:
        # This takes minutes, therefore the scores are printed before.
        chosen = {"layout": layout, "split": split, "split_file": splits, "class_names": names}
        with output.progress_bar("gathering evidence") as progress:
            _gather(model, data, evidence, result, chosen, progress)
        output.next_command("report", evidence)
    elif verdict.usable:
        output.next_command("predict", model, data)


def _gather(
    model: Path,
    data: Path,
    folder: Path,
    result: EvaluationResult,
    chosen: dict[str, Any],
    progress: ProgressCallback,
) -> None:
    """Writes all files that `report FOLDER` reads about one model.

    Args:
        model: a run folder or an exported file.
        data: the data folder.
        folder: where the files are written.
        result: the evaluation of the model.
        chosen: the keyword arguments that choose the photos: layout, split, split_file, class_names.
        progress: called with (done, total).
    """
    from agridistill.api import load
    from agridistill.evaluation.evidence import gather_evidence
    from agridistill.storage import write_json

    name = output.sibling(model, model.name).stem
    own = model / "splits.json" if model.is_dir() else None
    write_json(folder / "evaluation.json", result.to_json())
    found = gather_evidence(load(model).backend, data, own_split=own, progress=progress, **chosen)
    write_json(folder / "evidence" / f"{name}.json", found)
    if model.is_dir():
        from agridistill.evaluation.evidence import write_gallery

        write_gallery({name: model}, data, folder / "evidence" / "gallery.json", progress=progress, **chosen)


def print_evaluation(result: EvaluationResult, *, title: str) -> None:
    """Prints the scores of each class, the confusions and the figures of the whole model."""
    table = output.new_table(title, "class", "precision", "recall", "F1", "photos")
    for scores in result.per_class:
        f1 = UNDEFINED if scores.f1 is None else f"{scores.f1:.3f}"
        figures = (percent(scores.precision), percent(scores.recall), f1, f"{scores.photos:,}")
        table.add_row(printable(scores.name), *figures)
    output.print_table(table)
    if any(scores.f1 is None for scores in result.per_class):
        output.print_note(f"{UNDEFINED}: no photos of this class; it is left out of macro-F1")
    _print_confusions(result)
    # If no leaf is known, each photo counts as a leaf.
    leaves = f" of {result.leaves:,} leaves" if result.leaves < result.photos else ""
    skipped = f"; {result.skipped:,} unreadable left out" if result.skipped else ""
    output.print_figures(
        [
            ("accuracy (95 % CI)", accuracy(result)),
            ("macro-F1", f"{result.macro_f1:.3f}"),
            ("negative log-likelihood", f"{result.nll_nats:.3f} nats"),
            ("calibration error", percent(result.calibration_error)),
            ("temperature", f"{result.temperature:.2f}"),
            ("photos", f"{result.photos:,}{leaves}{skipped}"),
            ("parameters", count(result.parameters)),
            ("MACs", count(result.macs)),
            ("FLOPs", count(result.flops)),
            ("input", f"{result.image_size} x {result.image_size} px"),
        ]
    )


def _print_confusions(result: EvaluationResult) -> None:
    """Prints the confusion matrix if it fits the screen, else its largest entries.

    If long names prevent it from fitting, numbers replace the names in the matrix.
    """
    numbers = [f"{number:>{len(str(len(result.classes)))}}" for number in range(1, len(result.classes) + 1)]
    names = [f"{number} {printable(name)}" for number, name in zip(numbers, result.classes, strict=True)]
    small = len(result.classes) <= _MAX_MATRIX
    if small and output.has_room(matrix := _confusion_matrix(result, names, numbers)):
        output.print_table(matrix)
    elif small and output.has_room(matrix := _confusion_matrix(result, numbers, numbers)):
        output.print_table(matrix)
        for name in names:
            output.print_note(name)
        stdout.print()
    else:
        output.print_table(_frequent_confusions(result))


def _confusion_matrix(result: EvaluationResult, names: list[str], numbers: list[str]) -> Table:
    table = output.new_table("confusion matrix: rows are the truth, columns the prediction", "class", *numbers)
    for truth, row in enumerate(result.confusion_matrix):
        cells: list[str | Text] = [str(photos or "·") for photos in row]
        cells[truth] = Text(str(row[truth]), "bold")
        table.add_row(names[truth], *cells)
    return table


def _frequent_confusions(result: EvaluationResult) -> Table:
    table = output.new_table("most frequent confusions", "class", "taken for", "photos")
    table.columns[1].justify = "left"
    mistakes = [
        (photos, result.classes[truth], result.classes[prediction])
        for truth, row in enumerate(result.confusion_matrix)
        for prediction, photos in enumerate(row)
        if photos and truth != prediction
    ]
    for photos, truth_name, prediction_name in sorted(mistakes, key=lambda mistake: -mistake[0])[:_CONFUSIONS]:
        table.add_row(printable(truth_name), printable(prediction_name), f"{photos:,}")
    return table


def accuracy(result: EvaluationResult) -> str:
    """Formats the accuracy with its 95 % interval, such as "92.4 % (90.1–94.2)"."""
    low, high = result.accuracy_ci95
    return f"{percent(result.accuracy)} ({100 * low:.1f}–{100 * high:.1f})"
