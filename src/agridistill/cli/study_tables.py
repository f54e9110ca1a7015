"""The tables of a study, from the document of `compare.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agridistill.cli.cells import UNDEFINED, FigureTable, count, new_table, plain, show_note, show_table


def print_study(document: Mapping[str, Any]) -> None:
    """One table a budget, and what the figures rest on."""
    for budget in document["budgets"]:
        show_table(study_table(budget, baseline=document["baseline"]))
        for line in (*_best_lines(budget), *_finalist_lines(budget)):
            show_note(line)
    teacher = document["teacher"]
    if teacher is not None:
        low, high = (f"{100 * end:.1f}" for end in teacher["accuracy_ci95"])
        labels = "" if teacher["labels"] is None else f", learnt from {100 * teacher['labels']:g} % of the labels"
        told = f"teacher: {teacher['model']}, {100 * teacher['accuracy']:.1f} % ({low}–{high}){labels}"
        show_note(told, style="")
        if teacher["test_photos_learnt"]:
            learnt = f"{teacher['test_photos_learnt']:,}"
            told = f"it had learnt {learnt} of the test photos: its students' figures are too high"
            show_note(told, style="yellow")
    show_note(
        f"{document['test_photos']:,} test photos of {document['test_leaves']:,} leaves; ± is the standard deviation "
        "over seeds; a difference is over the seeds that both have, its interval a bootstrap over leaves and seeds "
        "(* one seed: of leaves alone, and too narrow)"
    )
    show_note(f"tuning: {document['tuning']}")


def study_table(budget: Mapping[str, Any], *, baseline: str) -> FigureTable:
    """One line a candidate."""
    title = f"{budget['name']}: {budget['epochs']} epochs, {100 * budget['labels']:g} % of the labels"
    columns = ("accuracy, %", f"to {baseline}, points (95 %)", "macro-F1", "NLL, nats", "calibration error, %", "seeds")
    table = new_table(title, "candidate", *columns, "parameters", "MACs")
    for row in budget["rows"]:
        table.add_row(
            plain(row["name"]),
            _mean(row, "accuracy", scale=100, digits=2),
            _difference(row["difference"]),
            _mean(row, "macro_f1", digits=3),
            _mean(row, "nll_nats", digits=3),
            _mean(row, "calibration_error", scale=100, digits=1),
            str(len(row["seeds"])),
            count(row["parameters"]),
            count(row["macs"]),
        )
    return table


def _mean(row: Mapping[str, Any], key: str, *, scale: float = 1, digits: int) -> str:
    mean, spread = row[f"{key}_mean"], row[f"{key}_sd"]
    shown = f"{scale * mean:.{digits}f}"
    return shown if spread is None else f"{shown} ± {scale * spread:.{digits}f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return UNDEFINED
    low, high = found["points_ci95"]
    return f"{found['points']:+.2f} ({low:+.1f} to {high:+.1f}){'*' if found['of_leaves_alone'] else ''}"


def _best_lines(budget: Mapping[str, Any]) -> list[str]:
    """The best on the validation split, held against every other method."""
    others = [f"{found['other']} {_difference(found)}" for found in budget["best_against"]]
    return [f"{budget['best']}, the best on the validation split, against {'; '.join(others)}"] if others else []


def _finalist_lines(budget: Mapping[str, Any]) -> list[str]:
    return [
        f"McNemar, seed {test['seed']}: {test['first']} alone right on {test['only_first']} photos, {test['second']} "
        f"alone on {test['only_second']}, p = {test['p_value']:.2g} (photos of one leaf taken for independent)"
        for test in budget["mcnemar"]
    ]
