"""Evaluations and benchmarks as tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from agridistill.cli.cells import (
    UNDEFINED,
    FigureTable,
    count,
    duration,
    new_table,
    percent,
    plain,
    show_note,
    show_table,
)
from agridistill.cli.output import shown, stdout
from agridistill.runtime.published import PAPER

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.runtime.benchmark_result import BenchmarkResult, ModelResult, Percentiles
    from agridistill.runtime.published import PublishedResult

# A larger matrix does not fit a page.
_MAX_MATRIX = 15
_CONFUSIONS = 10


@dataclass(frozen=True)
class ComparisonRow:
    """One line of a comparison.

    Attributes:
        name: what the reader knows the model by.
        result: its evaluation.
        train_s: time of its training; None where unknown.
    """

    name: str
    result: EvaluationResult
    train_s: float | None = None


def print_evaluation(result: EvaluationResult, *, title: str) -> None:
    """Prints the scores of each class, the confusions and the figures of the whole model."""
    show_table(class_table(result, title=title))
    if any(scores.f1 is None for scores in result.per_class):
        show_note(f"{UNDEFINED}: no photos of this class; it is left out of macro-F1")
    _print_confusions(result)
    show_table(summary_table(result))


def print_comparison(rows: Sequence[ComparisonRow], *, title: str) -> None:
    """Prints several evaluations, one a line."""
    show_table(comparison_table(rows, title=title))


def print_benchmark(result: BenchmarkResult) -> None:
    """Prints what was measured, others' figures below it, and how it was measured."""
    show_table(benchmark_table(result))
    for line in _benchmark_notes(result):
        show_note(line)


def comparison_table(rows: Sequence[ComparisonRow], *, title: str) -> FigureTable:
    """One line a model: accuracy with its interval, macro-F1, size, arithmetic and time."""
    table = new_table(title, "model", "accuracy (95 % CI)", "macro-F1", "parameters", "MACs", "training")
    for row in rows:
        result = row.result
        table.add_row(
            plain(row.name),
            _accuracy(result),
            f"{result.macro_f1:.3f}",
            count(result.parameters),
            count(result.macs),
            duration(row.train_s),
        )
    return table


def benchmark_table(result: BenchmarkResult) -> FigureTable:
    """One line a model; published figures in a section of their own."""
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    table = new_table(f"one photo at a time, {threads}, {result.host.processor}", "model", *_BENCHMARK_COLUMNS)
    for model in result.models:
        table.add_row(f"{plain(model.model)}\n{model.engine}, {model.precision}", *_measured_cells(model))
    if result.published:
        table.add_section()
    for paper in result.published:
        where = f" on a {paper.device}" if paper.device else ""
        table.add_row(f"{plain(paper.model)}{where}\n[italic]published, not measured[/]", *_published_cells(paper))
    return table


def summary_table(result: EvaluationResult) -> Table:
    """One line a figure of the whole model."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    # Where no leaf is known, each photo counts as one.
    photos = f"{result.photos:,}" + (f" of {result.leaves:,} leaves" if result.leaves < result.photos else "")
    rows = {
        "accuracy (95 % CI)": _accuracy(result),
        "macro-F1": f"{result.macro_f1:.3f}",
        "negative log-likelihood": f"{result.nll_nats:.3f} nats",
        "calibration error": percent(result.calibration_error),
        "temperature": f"{result.temperature:.2f}",
        "photos": photos + (f"; {result.skipped:,} unreadable left out" if result.skipped else ""),
        "parameters": count(result.parameters),
        "MACs": count(result.macs),
        "FLOPs": count(result.flops),
        "input": f"{result.image_size} x {result.image_size} px",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def class_table(result: EvaluationResult, *, title: str) -> FigureTable:
    """One line a class: precision, recall, F1 and photos."""
    table = new_table(title, "class", "precision", "recall", "F1", "photos")
    for scores in result.per_class:
        table.add_row(
            plain(scores.name),
            percent(scores.precision),
            percent(scores.recall),
            UNDEFINED if scores.f1 is None else f"{scores.f1:.3f}",
            f"{scores.photos:,}",
        )
    return table


def confusion_table(result: EvaluationResult, *, names: bool = True) -> FigureTable:
    """The confusion matrix; columns carry the classes' numbers, and rows without names as well."""
    numbers = [f"{number:>{len(str(len(result.classes)))}}" for number in range(1, len(result.classes) + 1)]
    table = new_table("confusion matrix: rows are the truth, columns the prediction", "class", *numbers)
    for index, (name, row) in enumerate(zip(result.classes, result.confusion_matrix, strict=True)):
        cells = [f"[bold]{count}[/]" if column == index else str(count or "·") for column, count in enumerate(row)]
        table.add_row(f"{numbers[index]} {plain(name)}" if names else numbers[index], *cells)
    return table


def frequent_confusions_table(result: EvaluationResult) -> FigureTable:
    """The most frequent mistakes."""
    table = new_table("most frequent confusions", "class")
    table.add_column("taken for", justify="left")
    table.add_column("photos")
    mistakes = [
        (photos, result.classes[truth], result.classes[prediction])
        for truth, row in enumerate(result.confusion_matrix)
        for prediction, photos in enumerate(row)
        if photos and truth != prediction
    ]
    for photos, truth_name, prediction_name in sorted(mistakes, key=lambda mistake: -mistake[0])[:_CONFUSIONS]:
        table.add_row(plain(truth_name), plain(prediction_name), f"{photos:,}")
    return table


# The most important first: a narrow screen shows the last ones in a table of their own.
_BENCHMARK_COLUMNS = (
    "accuracy",
    "size",
    "inference, ms\np50 / p90 / p99",
    "file to label, ms\np50 / p90 / p99",
    "photos/s",
    "memory",
    "energy",
    "load",
    "parameters",
    "MACs\nFLOPs",
)


def _print_confusions(result: EvaluationResult) -> None:
    """The matrix where it has room, with the classes' numbers for their names where those take too much of it."""
    width = stdout.width if stdout.is_terminal else None
    if len(result.classes) > _MAX_MATRIX:
        show_table(frequent_confusions_table(result))
    elif width is None or confusion_table(result).fits(width):
        show_table(confusion_table(result))
    elif (numbered := confusion_table(result, names=False)).fits(width):
        show_table(numbered)
        for number, name in enumerate(result.classes, start=1):
            show_note(f"{number:>2} {shown(name)}")
        stdout.print()
    else:
        show_table(frequent_confusions_table(result))


def _measured_cells(model: ModelResult) -> tuple[str, ...]:
    accuracy = UNDEFINED
    if model.accuracy is not None:
        low, high = model.accuracy.ci95
        accuracy = f"{percent(model.accuracy.share)}\n({100 * low:.1f}–{100 * high:.1f})"
    return (
        accuracy,
        _bytes(model.size_bytes),
        _percentiles(model.latency),
        _percentiles(model.end_to_end),
        f"{_digits(model.throughput_photos_per_s)}\n(x{model.throughput_batch_size})",
        _bytes(model.peak_memory_bytes),
        "unmeasured" if model.energy_j is None else f"{_digits(1000 * model.energy_j)} mJ",
        f"{_digits(model.load_s)} s",
        count(model.parameters),
        f"{count(model.macs)}\n{count(model.flops)}",
    )


def _published_cells(paper: PublishedResult) -> tuple[str, ...]:
    return (
        percent(paper.accuracy),
        _bytes(paper.size_bytes),
        UNDEFINED if paper.latency_ms is None else f"{paper.latency_ms:g}",
        *[UNDEFINED] * 6,
        f"{count(paper.macs)}\n{count(paper.flops)}",
    )


def _benchmark_notes(result: BenchmarkResult) -> list[str]:
    photos, host = result.photos, result.host
    source = "drawn leaves" if photos.source == "drawn" else shown(photos.source)
    notes = [
        (
            f"{result.queries:,} queries of each kind in {result.turns} turns, {result.warm_up_queries} untimed before "
            f"each; {photos.photos} photos ({source}) of {photos.mean_pixels / 1e6:.2g} megapixels and "
            f"{photos.mean_bytes / 1e3:.0f} kB on average"
        ),
        (
            "photos/s: inference, in brackets the photos at once; memory: peak above a bare Python's; "
            "energy: of all processor packages for one inference; load: until ready, in a fresh process"
        ),
        f"{host.system}, Python {host.python}, {host.cores} cores"
        + (f" ({', '.join(host.instructions)})" if host.instructions else "")
        + "; "
        + ", ".join(f"{name} {version or 'unknown'}" for name, version in host.versions.items())
        + f"; {host.date_utc}",
    ]
    if result.data is not None:
        notes.insert(0, f"accuracy (95 % interval): {shown(result.data)}")
    if result.published:
        notes.append(
            f"published: {PAPER}, on PlantVillage's tomato leaves and other machines; it names no percentile, calls "
            "its MACs FLOPs and its size memory"
        )
    return notes


def _percentiles(latency: Percentiles) -> str:
    return " / ".join(_digits(value) for value in (latency.p50, latency.p90, latency.p99))


def _digits(value: float) -> str:
    """Three digits: 2.31, 23.1, 231."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _bytes(number: int | None) -> str:
    return UNDEFINED if number is None else f"{_digits(number / 1e6)} MB"


def _accuracy(result: EvaluationResult) -> str:
    low, high = result.accuracy_ci95
    return f"{percent(result.accuracy)} ({100 * low:.1f}–{100 * high:.1f})"
