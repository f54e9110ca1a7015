"""The forms of a finished run that can go to a device, as `distill` and `export` show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.cli.output import progress_bar, shown, stderr
from agridistill.errors import AgriDistillError

if TYPE_CHECKING:
    from agridistill.exporting.forms import DeviceForm


def propose_form(run: Path, teacher: Path, *, data: Path) -> Path:
    """Measures a run and its teacher as int8 artefacts, prints both, and names the better one.

    Args:
        run: a finished run.
        teacher: the run that it learnt from.
        data: the photos that both learnt from.

    Returns:
        The run folder of the better form; `run` where nothing can be compared.
    """
    try:
        from agridistill.exporting.forms import device_forms

        with progress_bar("measuring the forms for a device") as progress:
            forms = device_forms(run, teacher, data=data, progress=progress)
    except (AgriDistillError, OSError) as error:
        # The student is finished all the same.
        stderr.print(f"The forms for a device are not compared: {error}", markup=False)
        return run
    for line in form_lines(forms):
        stderr.print(line, markup=False)
    return forms[0].run if forms else run


def form_lines(forms: Sequence[DeviceForm]) -> list[str]:
    """One line a form, the better one first, and why it is proposed."""
    lines = [
        f"int8 on this machine: {shown(form.model)} ({shown(str(form.run))}): {form.accuracy:.1%} of {form.photos} "
        f"validation photos, {form.latency_ms:.1f} ms, {form.size_bytes / 1e6:.1f} MB"
        for form in forms
    ]
    if len(forms) > 1:
        best, other = forms[0], forms[1]
        why = "more accurate" if best.accuracy > other.accuracy else "faster, and these photos show no other difference"
        if best.accuracy > other.accuracy and best.latency_ms < other.latency_ms:
            why = "more accurate and faster"
        lines.append(f"For a device: {shown(str(best.run))}, {why}.")
    return lines


def better_teacher_line(run: Path) -> str:
    """Where a run's teacher has an int8 form and is more accurate: which one to export instead; else empty."""
    from agridistill.evaluation.result import EvaluationResult
    from agridistill.exporting.forms import has_int8
    from agridistill.training.result import teacher_evaluation
    from agridistill.training.run_folder import RunFolder

    try:
        folder = RunFolder(run)
        teacher = Path(str(folder.read_environment().get("teacher") or ""))
        theirs = teacher_evaluation(run, teacher)
        ours = EvaluationResult.from_json(json.loads(folder.evaluation.read_text(encoding="utf-8")))
        # By more than so few photos leave to chance.
        if theirs is None or ours.accuracy_ci95.high >= theirs.accuracy or not has_int8(teacher):
            return ""
    except (AgriDistillError, OSError, ValueError):
        return ""
    return (
        f"Its teacher {shown(str(teacher))} is more accurate ({theirs.accuracy:.1%} against {ours.accuracy:.1%} of the "
        "same test photos) and has an int8 form too: export that one where its latency suits the device."
    )
