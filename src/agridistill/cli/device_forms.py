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

_FILE = "forms.json"


def measure_forms(run: Path, teacher: Path, *, data: Path) -> tuple[DeviceForm, ...]:
    """Measures a run and its teacher as int8 artefacts and keeps the figures in the run folder.

    Args:
        run: a finished run.
        teacher: the run that it learnt from.
        data: the photos that both learnt from.

    Returns:
        The better form first; empty where nothing can be compared, which is printed if it is an error.
    """
    from agridistill.storage import write_json

    try:
        from agridistill.exporting.forms import device_forms

        with progress_bar("measuring the forms for a device") as progress:
            forms = device_forms(run, teacher, data=data, progress=progress)
        if forms:
            write_json(run / _FILE, {"forms": [form.to_json() for form in forms]})
    except (AgriDistillError, OSError) as error:
        # The student is finished all the same.
        stderr.print(f"The forms for a device are not compared: {error}", markup=False)
        return ()
    return forms


def known_forms(run: Path) -> tuple[DeviceForm, ...]:
    """The forms that were measured when the run ended; empty where none were, or where one of them is gone."""
    try:
        document = json.loads((run / _FILE).read_text(encoding="utf-8"))
        from agridistill.exporting.forms import DeviceForm

        forms = tuple(DeviceForm.from_json(each) for each in document["forms"])
    except (ImportError, KeyError, OSError, TypeError, ValueError):
        return ()
    return forms if all((form.run / "manifest.json").exists() for form in forms) else ()


def better_form(run: Path, forms: Sequence[DeviceForm]) -> Path | None:
    """Prints the forms; another run that is the better one for a device, else None.

    Args:
        run: the run at hand.
        forms: from `measure_forms` or `known_forms`.
    """
    for line in form_lines(forms):
        stderr.print(line, markup=False)
    if not forms or forms[0].misses or forms[0].run.resolve() == run.resolve():
        return None
    from agridistill.cli.verdicts import verdict_on_run

    best = forms[0].run
    verdict = verdict_on_run(best)
    if verdict is None or verdict.usable:
        return best
    stderr.print(f"  but {verdict.headline[0].lower()}{verdict.headline[1:]}.", markup=False)
    return None


def form_lines(forms: Sequence[DeviceForm]) -> list[str]:
    """One line a form, the better one first, and why it is proposed."""
    from agridistill.evaluation.metrics import wilson_interval
    from agridistill.evaluation.verdict import percent

    lines = []
    for form in forms:
        low, high = wilson_interval(form.accuracy, form.photos)
        lines.append(
            f"int8 on this machine: {shown(form.model)} ({shown(str(form.run))}): {percent(form.accuracy)} of "
            f"{form.photos} validation photos (95 % interval {percent(low)} to {percent(high)}), "
            f"{form.latency_ms:.1f} ms, {form.size_bytes / 1e6:.1f} MB"
            + (f"; cannot be exported in int8: {form.misses}" if form.misses else "")
        )
    if len(forms) > 1 and not forms[0].misses:
        best, other = forms[0], forms[1]
        if other.misses:
            why = "the only one that keeps its answers in int8"
        elif best.accuracy > other.accuracy:
            why = "more accurate and faster" if best.latency_ms < other.latency_ms else "more accurate"
        elif best.accuracy < other.accuracy:
            why = f"faster; {best.photos} photos are too few to tell their accuracies apart"
        else:
            why = "faster, and as accurate"
        lines.append(f"For a device: {shown(str(best.run))}, {why}.")
    return lines
