"""What follows a finished run: the verdict about it, its int8 forms for a device, and the next command."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agridistill.cli.output import printable, progress_bar, sibling, stderr, stdout
from agridistill.errors import AgriDistillError

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.export.artefact import ExportResult
    from agridistill.export.forms import DeviceForm

Words = tuple[str | Path, ...]

_FORMS = "forms.json"
# Without colours the first word of the headline has the same meaning.
_STYLES = {"usable": "bold green", "weak": "bold yellow", "unproven": "bold yellow", "unusable": "bold red"}


def print_verdict(verdict: ModelVerdict, *, json: bool = False) -> None:
    """Prints a verdict on stdout; with `json`, where stdout is one document, on stderr."""
    console = stderr if json else stdout
    console.print(printable(verdict.headline), style=_STYLES[verdict.level])
    for line in verdict.remarks:
        console.print(f"  {printable(line)}")
    if verdict.advice:
        console.print("What helps:", style="bold")
    for line in verdict.advice:
        console.print(f"  - {printable(line)}")


def verdict_on(result: EvaluationResult, model: Path) -> ModelVerdict:
    """The verdict about a run folder or an artefact that was evaluated."""
    from agridistill.evaluation.learning import read_learning
    from agridistill.evaluation.verdict import judge

    return judge(result, learning=read_learning(model, result.classes) if model.is_dir() else None)


def verdict_on_artefact(result: ExportResult, run: Path) -> ModelVerdict:
    """The verdict about an artefact that was just written."""
    from agridistill.evaluation.verdict import judge_artefact
    from agridistill.manifest import read_manifest
    from agridistill.runtime.backends import manifest_path

    return judge_artefact(
        photos=result.parity.photos,
        accuracy=result.parity.accuracy,
        coverage=result.abstention.coverage,
        accuracy_of_answers=result.abstention.accuracy,
        classes=len(read_manifest(manifest_path(result.out)).classes),
        run=verdict_on_run(run),
    )


def verdict_on_run(run: Path) -> ModelVerdict | None:
    """The verdict about a finished run from its files; None where they cannot be read."""
    from agridistill.errors import RunError
    from agridistill.evaluation.evaluate import EvaluationResult

    try:
        return verdict_on(EvaluationResult.from_json(_evaluation(run)), run)
    except (OSError, ValueError, RunError):
        return None


def _evaluation(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def measure_forms(run: Path, teacher: Path, *, data: Path) -> tuple[DeviceForm, ...]:
    """Measures a run and its teacher as int8 artefacts and stores the figures in the run folder.

    Args:
        run: a finished run.
        teacher: the teacher of that run.
        data: the photos that both were trained on.

    Returns:
        The better form first; empty where nothing can be compared. An error is printed: the run is finished anyway.
    """
    from agridistill.storage import write_json

    try:
        from agridistill.export.forms import device_forms

        with progress_bar("measuring the forms for a device") as progress:
            forms = device_forms(run, teacher, data=data, progress=progress)
        if forms:
            write_json(run / _FORMS, {"forms": [form.to_json() for form in forms]})
    except (AgriDistillError, OSError) as error:
        stderr.print(f"The forms for a device are not compared: {error}")
        return ()
    return forms


def known_forms(run: Path) -> tuple[DeviceForm, ...]:
    """The forms that were measured when the run ended; empty where none were, or where one of their runs is gone."""
    try:
        from agridistill.export.forms import DeviceForm

        document = json.loads((run / _FORMS).read_text(encoding="utf-8"))
        forms = tuple(DeviceForm.from_json(each) for each in document["forms"])
    except (ImportError, KeyError, OSError, TypeError, ValueError):
        return ()
    return forms if all((form.run / "manifest.json").exists() for form in forms) else ()


def better_form(run: Path, forms: Sequence[DeviceForm]) -> Path | None:
    """Prints the forms of a run; returns another run that is the better one for a device, else None."""
    for line in form_lines(forms):
        stderr.print(line)
    if not forms or forms[0].misses or forms[0].run.resolve() == run.resolve():
        return None
    best = forms[0].run
    verdict = verdict_on_run(best)
    if verdict is None or verdict.usable:
        return best
    stderr.print(f"  but {verdict.headline[0].lower()}{verdict.headline[1:]}.")
    return None


def form_lines(forms: Sequence[DeviceForm]) -> list[str]:
    """One line a form, the better one first, and the reason for the better one."""
    from agridistill.evaluation.learning import percent
    from agridistill.evaluation.metrics import wilson_interval

    lines = []
    for form in forms:
        low, high = wilson_interval(form.accuracy, form.photos)
        misses = f"; cannot be exported in int8: {form.misses}" if form.misses else ""
        lines.append(
            f"int8 on this machine: {printable(form.model)} ({printable(str(form.run))}): {percent(form.accuracy)} of "
            f"{form.photos} validation photos (95 % interval {percent(low)} to {percent(high)}), "
            f"{form.latency_ms:.1f} ms, {form.size_bytes / 1e6:.1f} MB{misses}"
        )
    if len(forms) > 1 and not forms[0].misses:
        lines.append(f"For a device: {printable(str(forms[0].run))}, {_reason(forms[0], forms[1])}.")
    return lines


def _reason(best: DeviceForm, other: DeviceForm) -> str:
    if other.misses:
        return "the only one that keeps its answers in int8"
    if best.accuracy > other.accuracy:
        return "more accurate and faster" if best.latency_ms < other.latency_ms else "more accurate"
    if best.accuracy < other.accuracy:
        return f"faster; {best.photos} photos are too few to tell their accuracies apart"
    return "faster, and as accurate"


def gpu_at_hand() -> bool:
    """Whether training would run on a GPU; torch is not imported to find out."""
    if importlib.util.find_spec("torch") is None:
        return False
    if (torch := sys.modules.get("torch")) is not None:
        return bool(torch.cuda.is_available())
    return shutil.which("nvidia-smi") is not None


@dataclass(frozen=True)
class StudentPlan:
    """A student that may follow a run on labels alone."""

    model: str  # name of its network
    planned: bool  # whether the recipe has a section for it
    words: Sequence[str | Path]  # options of `distill` that train it with the settings of the run


def after_training(data: Path, run: Path, result: EvaluationResult, student: StudentPlan) -> Words:
    """The command after a usable run on labels alone: a student under it, or the file for the device.

    Distilling takes many times the steps of training, so without a GPU it is proposed only where it was planned.
    """
    size = _parameters(student.model, len(result.classes))
    larger = size is not None and result.parameters is not None and size > result.parameters
    if (student.planned or gpu_at_hand()) and not larger:
        return ("distill", data, "--teacher", run, *student.words, "--out", sibling(run, "student"))
    return export_of(run, result)


def export_of(run: Path, result: EvaluationResult | None = None) -> Words:
    """The command that writes the file for a device: in int8 if the network can be rounded, or without a result."""
    precision = ("--precision", "int8") if result is None or _can_be_int8(run, result) else ()
    return ("export", run, "--out", sibling(run, f"{run.resolve().name}.onnx"), *precision)


def larger_than_teacher(student: str, teacher: Path) -> tuple[int, int] | None:
    """Parameters of a student and of its teacher if the student has more; None otherwise or where unknown.

    Args:
        student: name of the network.
        teacher: a finished run.
    """
    try:
        document = _evaluation(teacher)
        theirs, classes = document["parameters"], len(document["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = _parameters(student, classes)
    return None if ours is None or theirs is None or ours <= theirs else (ours, theirs)


def _parameters(model: str, classes: int) -> int | None:
    """None where unknown; the command that takes a wrong name reports it."""
    import torch

    from agridistill.errors import ModelError
    from agridistill.models import create_model

    try:
        with torch.device("meta"):
            network = create_model(model, classes)
    except (ModelError, RuntimeError):
        # RuntimeError: a network that cannot be built without its memory.
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
