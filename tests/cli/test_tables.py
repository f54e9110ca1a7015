"""Tables on narrow screens: whole names, whole figures, no line longer than the screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.table import Table
from tests.cli.test_benchmark import benchmark_of, model
from tests.cli.test_evaluate import result

from agridistill.cli import output
from agridistill.cli.benchmark import print_benchmark
from agridistill.cli.compare import print_study
from agridistill.cli.demo import print_rows
from agridistill.cli.evaluate import print_evaluation
from agridistill.cli.output import new_table, print_note, print_table
from agridistill.data.datasets import TOMATO_CLASSES
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.metrics import ClassScores
from agridistill.training.run_folder import RunResult

Screen = Callable[[int], None]

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Makes stdout a terminal of a width, without colours."""

    def of_width(width: int) -> None:
        for name, value in {"_force_terminal": True, "_color_system": None, "_width": width}.items():
            monkeypatch.setattr(output.stdout.console, name, value)
        monkeypatch.setenv("TTY_COMPATIBLE", "1")

    return of_width


def tomato_result(photos: int = 100) -> EvaluationResult:
    scores = tuple(ClassScores(name, 0.901 + 0.01 * n, 0.5, 0.75, 617) for n, name in enumerate(TOMATO_CLASSES))
    matrix = tuple(tuple(photos + column if row == column else column for column in range(10)) for row in range(10))
    return replace(result(10), classes=TOMATO_CLASSES, per_class=scores, confusion_matrix=matrix)


def study_document() -> dict[str, Any]:
    difference = {"other": "ce", "points": 1.23, "points_ci95": [-0.5, 2.9], "of_leaves_alone": False}

    def row(name: str) -> dict[str, Any]:
        figures = {"accuracy": (0.9123, 0.0031), "macro_f1": (0.901, 0.004), "nll_nats": (0.25, 0.01)}
        figures["calibration_error"] = (0.021, 0.003)
        means = {f"{key}_mean": mean for key, (mean, _) in figures.items()}
        spreads = {f"{key}_sd": spread for key, (_, spread) in figures.items()}
        size = {"parameters": 4_210_000, "macs": 215_300_000}
        against = None if name == "ce" else difference
        return {"name": name, "seeds": [0, 1, 2], "difference": against, **means, **spreads, **size}

    rows = [row(name) for name in ("ce", "kd", "hybrid-hint")]
    budget = {"name": "full", "epochs": 30, "labels": 1.0, "rows": rows, "best": "kd", "best_against": [difference]}
    teacher = {"model": "swin", "accuracy": 0.95, "accuracy_ci95": [0.94, 0.96], "labels": 1.0}
    return {
        "budgets": [budget | {"mcnemar": []}],
        "baseline": "ce",
        "teacher": teacher | {"test_photos_learnt": 3},
        "test_photos": 1234,
        "test_leaves": 400,
        "tuning": "the settings of every method were chosen on the validation split by the same number of trials",
    }


def printed(capsys: pytest.CaptureFixture[str], width: int) -> list[str]:
    """The lines, none of which is longer than the screen."""
    lines = capsys.readouterr().out.splitlines()
    assert max(cell_len(line) for line in lines) <= width
    return lines


def cells(lines: list[str]) -> list[str]:
    """Everything that stands by itself in a line."""
    return [cell for line in lines for cell in re.split(r"\s{2,}", line.strip())]


@WIDTHS
def test_an_evaluation_keeps_names_and_figures_whole(
    width: int, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(width)
    print_evaluation(tomato_result(), title="mobilenetv3_small_050 on the test split of /photos/plantvillage-tomato")
    found = cells(printed(capsys, width))
    for number, name in enumerate(TOMATO_CLASSES):
        assert name in found
        assert f"{90.1 + number:.1f} %" in found
        assert str(100 + number) in found
    assert found.count("617") == len(TOMATO_CLASSES)
    assert "91.2 % (89.5–92.7)" in found


@pytest.mark.parametrize(("width", "photos", "form"), [(120, 100, "names"), (60, 100, "numbers"), (60, 10_000, "list")])
def test_confusions_take_the_form_that_has_room(
    width: int, photos: int, form: str, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(width)
    print_evaluation(tomato_result(photos), title="x")
    lines = printed(capsys, width)
    matrix = [line for line in lines if line.lstrip().startswith("10 ") and str(photos + 9) in line]
    assert len(matrix) == (form != "list")
    assert any("Tomato___healthy" in line for line in matrix) == (form == "names")
    assert ("10 Tomato___healthy" in lines) == (form == "numbers")
    assert ("most frequent confusions" in lines) == (form == "list")


@WIDTHS
def test_a_benchmark_keeps_names_and_figures_whole(
    width: int, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(width)
    long = "/home/someone/crops/runs/2026-student/leaf.onnx"
    print_benchmark(benchmark_of(model(), model(model=long)))
    found = cells(printed(capsys, width))
    assert {"a[b].onnx", long, "distilled MobileNetV3 on a smartphone"} <= set(found)
    for figure in ("90.2 %", "(88.9–91.4)", "5.40 MB", "2.31 / 12.3 / 123", "3.30 / 3.40 / 3.50", "86.4 MB", "4.21 M"):
        assert found.count(figure) == 2
    for figure in ("457", "12.3 mJ", "0.20 s", "72.2 M", "144 M", "published, not measured"):
        assert figure in found


@WIDTHS
def test_comparisons_keep_names_and_figures_whole(
    width: int, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(width)
    names = ("baseline student", "hybrid student with a long name, of run 12")
    print_rows({name: RunResult(Path("run"), result(), 1, 75, ()) for name in names})
    found = cells(printed(capsys, width))
    assert set(names) <= set(found)
    for figure in ("91.2 % (89.5–92.7)", "0.903", "4.21 M", "215 M", "1 min 15 s"):
        assert found.count(figure) == 2
    print_study(study_document())
    found = cells(printed(capsys, width))
    assert {"ce", "kd", "hybrid-hint"} <= set(found)
    for figure in ("91.23 ± 0.31", "0.901 ± 0.004", "0.250 ± 0.010", "2.1 ± 0.3", "4.21 M", "215 M"):
        assert found.count(figure) == 3
    assert found.count("+1.23 (-0.5 to +2.9)") == 2


def test_accuracy_stands_in_the_first_table(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    screen(60)
    print_study(study_document())
    first = capsys.readouterr().out.split("\n\n")[0]
    assert "91.23 ± 0.31" in first
    assert "4.21 M" not in first


def table(name: str, columns: int) -> Table:
    made = new_table("title", "name", *(f"column {number}" for number in range(columns)))
    made.add_row(name, *(f"figure{number}" for number in range(columns)))
    return made


@pytest.mark.parametrize(
    ("name", "columns", "width", "lines"),
    [
        ("leaf", 3, 60, ["name  column 0  column 1  column 2", "leaf   figure0   figure1   figure2"]),
        ("leaf", 3, 26, ["name  column 0  column 1", "leaf   figure0   figure1", "name  column 2", "leaf   figure2"]),
    ],
)
def test_what_has_no_room_goes_below(
    name: str, columns: int, width: int, lines: list[str], screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(width)
    print_table(table(name, columns))
    found = [line.rstrip() for line in printed(capsys, width) if line.strip() and "─" not in line]
    assert found[: 1 + len(lines)] == ["title", *lines]
    assert f"figure{columns - 1}" in found[-1]


def test_a_name_wider_than_the_screen_is_continued_and_loses_nothing(
    screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    screen(20)
    print_table(table("runs/" + 30 * "x" + ".onnx", 1))
    text = "".join(line.replace("figure0", "").strip() for line in printed(capsys, 20))
    assert "runs/" + 30 * "x" + ".onnx" in text


def test_in_a_file_a_table_is_whole_and_a_note_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table("a very long name " * 5, 30))
    print_note("word " * 50)
    lines = capsys.readouterr().out.splitlines()
    assert any("figure0" in line and "figure29" in line and "a very long name" in line for line in lines)
    assert lines[-1].split() == ["word"] * 50
