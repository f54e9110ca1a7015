"""The commands that apply a model to photos: `agridistill evaluate` and `predict`; `models` lists shipped models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.export import print_verdict, verdict_on
from agridistill.cli.output import UNDEFINED, count, percent, percent_with_interval, printable, stderr, stdout
from agridistill.cli.predict import print_predictions
from agridistill.errors import ConfigError
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
    against: Annotated[
        Path | None,
        Option(
            metavar="OLD",
            help="Compare MODEL with this older model on the same photos. The exit code is 1 unless it is shown that "
            "MODEL is good enough to replace it.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        Option(
            min=0.0,
            max=100.0,
            metavar="POINTS",
            help="With --against: allow this loss of accuracy, even at the lower end of its 95 % interval.",
            show_default="3",
        ),
    ] = None,
    max_class_drop: Annotated[
        float | None,
        Option(
            min=0.0,
            max=100.0,
            metavar="POINTS",
            help="With --against: allow this loss of recall in each class.",
            show_default="10",
        ),
    ] = None,
    json: options.Json = False,
    out: Annotated[Path | None, Option(help="Also write the result to this file as JSON.")] = None,
) -> None:
    """Measure how well a model classifies labelled photos, or compare it with an older model (--against).

    The split comes from --splits; without it, from the training run if the model was trained on this data; otherwise
    from train/val/test folders. Without any split, all photos are evaluated, but only if it is certain that the model
    has not learnt from them. If that is not known, pass --split all.

    Classes of the model that have no photos in the data get no scores.
    """
    from agridistill import api
    from agridistill.cli import proof
    from agridistill.data.labels import FOLDERS
    from agridistill.evaluation.held_out import read_class_names
    from agridistill.runtime.backends import model_path
    from agridistill.storage import require_result_file, require_writable, write_json

    if against is None and (max_drop, max_class_drop) != (None, None):
        raise typer.BadParameter("--max-drop and --max-class-drop need --against OLD")
    if against is not None and evidence is not None:
        raise typer.BadParameter("--evidence is about one model: omit --against")
    layout = labels.layout() or FOLDERS
    model = model_path(model)
    if out is not None:
        require_result_file(out, keys=("model", "split", "confusion_matrix") if against is None else proof.KEYS)
    if evidence is not None:
        require_writable(evidence, "--evidence", folder=True)
        _require_no_other_result(evidence)
    photos: dict[str, Any] = {
        "split": split,
        "split_file": splits,
        "class_names": read_class_names(map_) if map_ is not None else {},
        "label_file": labels.labels,
        "label_columns": layout.label_columns,
        "nested": labels.nested,
    }
    if against is not None:
        where = [*labels.words(), *(("--splits", splits) if splits else ()), *(("--map", map_) if map_ else ())]
        proof.compare(model, data, model_path(against), (max_drop, max_class_drop), photos, where, json=json, out=out)
        return
    with output.progress_bar("reading photos") as progress:
        begin(progress, "loading the model")
        result = api.evaluate(model, data, **photos, progress=progress)
    if result.split == "all" != split:
        split = "all"
        print_all_used()
    output.print_skipped(result.skipped, result.skipped_photos[0] if result.skipped else "")
    verdict = verdict_on(result, model)
    document = result.to_json() | {"verdict": verdict.to_json()}
    if json:
        output.print_json(document)
    else:
        print_evaluation(result, title=f"{result.model} on {photos_of(split)} of {data}")
    print_verdict(verdict, json=json)
    if out is not None:  # after the figures were printed: a full disk does not lose them
        write_json(out, document)
    if evidence is not None:
        # This takes minutes, therefore the scores are printed before.
        chosen = {"layout": layout, "split": split, "split_file": splits, "class_names": photos["class_names"]}
        with output.progress_bar("gathering evidence") as progress:
            _gather(model, data, evidence, result, chosen, progress)
        output.next_command("report", evidence)
    elif verdict.usable:
        output.next_command("predict", model, data)


def _require_no_other_result(folder: Path) -> None:
    """Raises a ConfigError if a folder holds a run or a study, whose own figures would be overwritten."""
    for name, what in (("recipe.toml", "a run"), ("compare.json", "a study")):
        if (folder / name).exists():
            raise ConfigError("a folder of its own for --evidence", f"'{folder}', which holds {what}", "choose another")


def print_all_used() -> None:
    """Reports that a folder without a split is used as a whole."""
    stderr.print("None of these photos is known to be from the model's training: all of them are used for testing.")


def photos_of(split: str) -> str:
    """Names the photos of a split for a title."""
    return "all photos" if split == "all" else f"the {split} split"


def _gather(
    model: Path,
    data: Path,
    folder: Path,
    result: EvaluationResult,
    chosen: dict[str, Any],
    progress: ProgressCallback,
) -> None:
    """Writes all files that `report FOLDER` reads about a model; `chosen` are arguments of `choose_photos`."""
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
            ("accuracy (95 % CI)", percent_with_interval(result.accuracy, result.accuracy_ci95)),
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
    """Prints the confusion matrix, with numbers in place of long names, or its largest entries if it does not fit."""
    numbers = [f"{number:>{len(str(len(result.classes)))}}" for number in range(1, len(result.classes) + 1)]
    names = [f"{number} {printable(name)}" for number, name in zip(numbers, result.classes, strict=True)]
    small = len(result.classes) <= _MAX_MATRIX
    if small and output.has_room(matrix := _confusion_matrix(result, names, numbers)):
        output.print_table(matrix)
    elif small and output.has_room(matrix := _confusion_matrix(result, numbers, numbers)):
        output.print_with_legend(matrix, names)
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


def predict(
    model: options.Model,
    images: Annotated[list[Path], Argument(metavar="IMAGE", help="Classify these photos, or all photos in a folder.")],
    top: Annotated[int, Option(min=1, metavar="N", help="Print the N most probable classes.")] = 1,
    explain: Annotated[
        bool, Option("--explain", help="Write NAME-explained.png for each photo, which shows where the model looked.")
    ] = False,
    explain_out: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Write the pictures of --explain to this folder, not to the current one."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Classify photos and print one line for each.

    The line gives the class with its probability, or it reports that the model is unsure, that the photo is unlike the
    training photos, or why the photo cannot be used.

    A photo that does not exist or cannot be read is reported on stderr, and the others are still classified. The exit
    code is then 2 if a photo does not exist, else 1.
    """
    code = print_predictions(
        model, images, top=top, explain=explain or explain_out is not None, explain_out=explain_out, json=json
    )
    if code:
        raise typer.Exit(code)


def models(json: options.Json = False) -> None:
    """List the models that are installed with AgriDistill: name, size, classes, accuracy and file."""
    from agridistill.runtime.backends import shipped_models

    found = shipped_models()
    if json:
        output.print_json({"models": found})
        return
    table = output.new_table("shipped models", "name", "size", "input", "classes", "accuracy")
    for model in found:
        size, pixels = f"{model['size_bytes'] / 1e6:.1f} MB", f"{model['image_size']} px"
        table.add_row(
            printable(model["name"]), size, pixels, str(len(model["classes"])), percent(model["test_accuracy"])
        )
    output.print_table(table)
    stdout.print("accuracy: share of right answers on unseen leaves of the data set that the model was trained on")
    for model in found:
        stdout.print(f"{model['name']}: {model['file']}")
        stdout.print(f"  on the phone page: {model['page_file']}")
        stdout.print(f"  classes: {', '.join(model['classes'])}")
    if found:
        output.next_command("predict", found[0]["name"], "IMAGE")
