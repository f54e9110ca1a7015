"""Which command comes next, from what is at hand: hardware, installed extras, sizes of teacher and student."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.cli.output import sibling

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult

Words = tuple[str | Path, ...]


def gpu_at_hand() -> bool:
    """Whether training would run on a GPU; without loading torch for the answer alone."""
    if importlib.util.find_spec("torch") is None:
        return False
    if (torch := sys.modules.get("torch")) is not None:
        return bool(torch.cuda.is_available())
    return shutil.which("nvidia-smi") is not None


def after_training(
    data: Path, run: Path, result: EvaluationResult, *, student: str, for_student: Sequence[str | Path], planned: bool
) -> Words:
    """What follows a usable run on labels alone: a student under it, or the file for the device.

    Distilling takes many times the steps of training, so on a processor it is proposed only where it was planned.

    Args:
        data: photos of the run.
        run: the finished run.
        result: its evaluation.
        student: name of the network that would learn from it.
        for_student: options of `distill` that make the student as this run was made.
        planned: the recipe has a section for the student.
    """
    if (planned or gpu_at_hand()) and not _is_larger(student, result.parameters, len(result.classes)):
        return ("distill", data, "--teacher", run, *for_student, "--out", sibling(run, "student"))
    return export_of(run, result)


def export_of(run: Path, result: EvaluationResult) -> Words:
    """The file for a device: int8 where the network can be rounded."""
    out = sibling(run, f"{run.resolve().name}.onnx")
    precision = ("--precision", "int8") if _can_be_int8(run, result) else ()
    return ("export", run, "--out", out, *precision)


def larger_than_teacher(student: str, teacher: Path) -> tuple[int, int] | None:
    """Parameters of a student and of its teacher, where the student has more; None where it has not or where unknown.

    Args:
        student: name of the network.
        teacher: a finished run.
    """
    try:
        document = json.loads((teacher / "evaluation.json").read_text(encoding="utf-8"))
        theirs, classes = document["parameters"], len(document["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = _parameters(student, classes)
    return None if ours is None or theirs is None or ours <= theirs else (ours, theirs)


def _is_larger(student: str, parameters: int | None, classes: int) -> bool:
    ours = _parameters(student, classes)
    return ours is not None and parameters is not None and ours > parameters


def _parameters(model: str, classes: int) -> int | None:
    """None where unknown; where no network has this name, the command that takes it says so."""
    import torch

    from agridistill.errors import ModelError
    from agridistill.models import create_model

    try:
        with torch.device("meta"):
            network = create_model(model, classes)
    except (ModelError, RuntimeError):
        # The latter from a network that cannot be built without its memory.
        return None
    return sum(parameter.numel() for parameter in network.parameters())


def _can_be_int8(run: Path, result: EvaluationResult) -> bool:
    from agridistill.errors import ModelError
    from agridistill.manifest import MANIFEST_NAME, read_manifest
    from agridistill.models import create_model
    from agridistill.models.int8 import quantised

    manifest = read_manifest(run / MANIFEST_NAME)
    if manifest.precision == "int8":
        return True
    try:
        network = create_model(manifest.model, len(manifest.classes), image_size=result.image_size)
        quantised(network.eval(), manifest.preprocessing)
    except ModelError:
        return False
    return True


# What a command imports beyond the base, by the extra that holds it.
_NEEDS = {
    "train": ("train", ("torch", "timm", "lightning")),
    "distill": ("train", ("torch", "timm", "lightning")),
    "evaluate": ("train", ("torch", "sklearn")),
    "export": ("export", ("onnx", "onnxscript")),
    "report": ("report", ("jinja2", "matplotlib")),
    "watch": ("edge", ("paho", "cryptography", "httpx")),
    "publish": ("edge", ("cryptography",)),
}


def missing_extra(command: str) -> str | None:
    """The extra that a command needs and that is not installed.

    Example:
        >>> missing_extra("predict")
    """
    extra, modules = _NEEDS.get(command, ("", ()))
    return extra if any(importlib.util.find_spec(module) is None for module in modules) else None
