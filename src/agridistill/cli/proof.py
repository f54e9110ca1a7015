"""Output of `agridistill evaluate --against`: a new and an old model on the same photos, and whether the rule holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from agridistill.cli import output
from agridistill.cli.evaluate import photos_of, print_all_used
from agridistill.cli.output import UNDEFINED, percent, printable, stderr, stdout
from agridistill.progress import begin

if TYPE_CHECKING:
    from agridistill.evaluation.proof import ProofResult

KEYS = ("new", "old", "verdict")
"""Keys by which a JSON file is recognised as an earlier result."""
_STYLES = {"holds": "bold green", "not shown": "bold yellow", "fails": "bold red"}


def compare(
    model: Path,
    data: Path,
    old: Path,
    rule: tuple[float | None, float | None],
    photos: Mapping[str, Any],
    words: Sequence[str | Path],
    *,
    json: bool,
    out: Path | None,
) -> None:
    """Compares two models, prints the result, and exits with code 1 unless the rule holds.

    `rule` has the allowed losses of accuracy and of recall in percentage points; None means the default. `photos` are
    the arguments of `api.evaluate` that choose the photos, `words` the same for the command line, without --split.
    """
    from agridistill import api
    from agridistill.storage import write_json

    with output.progress_bar("reading photos") as progress:
        begin(progress, "loading the models")
        result = api.evaluate(
            model, data, against=old, max_drop=rule[0], max_class_drop=rule[1], **photos, progress=progress
        )
    split = result.new.evaluation.split
    if split == "all" != photos["split"]:
        print_all_used()
    skipped = result.new.evaluation.skipped_photos
    output.print_skipped(len(skipped), skipped[0] if skipped else "")
    command = ["agridistill", "evaluate", model, data, "--against", old, "--split", split, *words]
    command += ["--max-drop", f"{result.max_drop_points:g}", "--max-class-drop", f"{result.max_class_drop_points:g}"]
    document = {**result.to_json(), "command": shlex.join(map(str, command))}
    if json:
        output.print_json(document)
    else:
        print_proof(result)
    console = stderr if json else stdout
    console.print(printable(result.verdict.headline), style=_STYLES[result.verdict.level])
    for line in result.verdict.remarks:
        console.print(f"  {printable(line)}")
    if out is not None:  # after the figures were printed: a full disk does not lose them
        write_json(out, document)
    if not result.holds:
        raise typer.Exit(1)
    if out is not None and model.is_file():
        output.next_command("publish", model, "--against", out)


def print_proof(result: ProofResult) -> None:
    """Prints the recall of each class and the figures of both models."""
    names = [printable(change.name) for change in result.per_class]
    if output.has_room(table := _recalls(result, names)):
        output.print_table(table)
    else:  # long names
        numbers = [str(number) for number in range(1, len(names) + 1)]
        output.print_with_legend(_recalls(result, numbers), map(" ".join, zip(numbers, names, strict=True)))
    _print_models(result)
    from agridistill.evaluation.learning import count as number_of

    points, low, high = result.difference
    leaves = f" of {result.leaves:,} leaves" if result.leaves < result.photos else ""
    output.print_figures(
        [
            ("difference (95 % CI)", f"{points:+.1f} points ({low:+.1f} to {high:+.1f})"),
            ("only the new is right", number_of(result.only_new_right, "photo")),
            ("only the old is right", number_of(result.only_old_right, "photo")),
            ("McNemar's test", f"p = {result.mcnemar_p_value:.2g}"),
            ("photos", f"{result.photos:,}{leaves}"),
        ]
    )


def _recalls(result: ProofResult, names: Sequence[str]) -> Table:
    where = f"{photos_of(result.new.evaluation.split)} of {result.data}"
    title = f"{result.new.model} against {result.old.model} on {where}: recall"
    table = output.new_table(title, "class", "old", "new", "change", "photos")
    for name, change in zip(names, result.per_class, strict=True):
        points = UNDEFINED if change.difference is None else f"{change.difference.points:+.1f}"
        table.add_row(name, percent(change.old_recall), percent(change.new_recall), points, f"{change.photos:,}")
    return table


def _print_models(result: ProofResult) -> None:
    from agridistill.evaluation.proof import COVERAGES

    def row(name: str, share: Any) -> tuple[str, str, str, str]:
        old, new = share(result.old), share(result.new)
        change = UNDEFINED if old is None or new is None else f"{100 * (new - old):+.1f}"
        return name, percent(old), percent(new), change

    def surest(place: int) -> Any:
        return lambda model: model.accuracy_of_surest[place]

    table = output.new_table("the models on these photos", "figure", "old", "new", "change")
    table.add_row(*row("accuracy", lambda model: model.evaluation.accuracy))
    for place, coverage in enumerate(COVERAGES):
        table.add_row(*row(f"accuracy of the surest {100 * coverage:.0f} %", surest(place)))
    table.add_row(*row("photos answered", lambda model: model.coverage))
    table.add_row(*row("accuracy of these answers", lambda model: model.accuracy_of_answers))
    table.add_row(*row("calibration error", lambda model: model.evaluation.calibration_error))
    nll_old, nll_new = (model.evaluation.nll_nats for model in (result.old, result.new))
    table.add_row("NLL (nats)", f"{nll_old:.3f}", f"{nll_new:.3f}", f"{nll_new - nll_old:+.3f}")
    output.print_table(table)
