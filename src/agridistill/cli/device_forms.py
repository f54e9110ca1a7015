"""The forms of a finished run that can go to a device, as `distill` and `export` show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.cli.output import progress_bar, shown, stderr
from agridistill.errors import AgriDistillError

if TYPE_CHECKING:
    from agridistill.exporting.forms import DeviceForm


def propose_form(run: Path, *, data: Path | None = None, split_file: Path | None = None) -> Path:
    """Measures the run and its teacher as int8 artefacts, prints both, and names the better one.

    Args:
        run: a finished run with a teacher.
        data: the photos; None takes the folder that each run names.
        split_file: as for `export`.

    Returns:
        The run folder of the better form; `run` where nothing can be compared.
    """
    try:
        from agridistill.exporting.forms import device_forms

        with progress_bar("measuring the forms for a device") as progress:
            forms = device_forms(run, data=data, split_file=split_file, progress=progress)
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
