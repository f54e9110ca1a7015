"""`report`: one self-contained page, and each plot with its numbers beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from agridistill.errors import RunError
from agridistill.report import model_plots, study_plots, words
from agridistill.report.documents import ReportDocuments, read_documents
from agridistill.report.drawing import WIDEST, Plot
from agridistill.report.glossary import glossary
from agridistill.report.overlays import overlay
from agridistill.report.provenance import provenance
from agridistill.storage import json_text, write_json, write_text

PAGE_NAME, FIGURES_NAME = "report.html", "figures"


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        page: the HTML file.
        plots: one SVG file a plot, for a paper or a talk.
        numbers: one JSON file a plot.
    """

    page: Path
    plots: tuple[Path, ...]
    numbers: tuple[Path, ...]


def report(folder: Path) -> ReportResult:
    """Writes `report.html` and `figures/*.svg` with `figures/*.json` from the result files of a study or a run.

    Args:
        folder: with `compare.json`, or `evaluation.json`; `metrics.csv`, `evidence/*.json` and `benchmark.json` add to
            it.

    Raises:
        RunError: nothing to report on, or a damaged file.
    """
    documents = read_documents(folder)
    try:
        shown = _plots(documents)
        text = _page(documents, shown)
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
        told = f"others in '{folder}' ({type(error).__name__}: {error})"
        raise RunError("result files as this release writes them", told, "make them again") from None
    page = folder / PAGE_NAME
    write_text(page, text)
    plots = tuple(folder / FIGURES_NAME / f"{plot.name}.svg" for plot in shown)
    numbers = tuple(file.with_suffix(".json") for file in plots)
    for plot, picture, figures in zip(shown, plots, numbers, strict=True):
        write_text(picture, plot.svg)
        write_json(figures, plot.numbers)
    return ReportResult(page, plots, numbers)


def _page(documents: ReportDocuments, shown: Sequence[Plot]) -> str:
    environment = Environment(
        loader=PackageLoader("agridistill.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["short"] = model_plots.short_name
    environment.filters["plain"] = words.plain_name
    environment.filters["signed"] = lambda value: f"{value:+.2f}"
    study = documents.study
    summary = words.study_summary(study) if study else []
    for name, evaluation in documents.evaluations.items():
        summary += [] if study else words.model_summary(name, evaluation)
    for name, evidence in documents.evidence.items():
        summary += words.evidence_summary(name, evidence)
    return environment.get_template("report.html").render(
        title=f"{'Study' if study else 'Model'}: {documents.name}",
        study=study,
        summary=summary,
        evaluations=documents.evaluations,
        classes=_classes(documents),
        evidence=documents.evidence,
        gallery=_overlaid(documents.gallery),
        benchmark=documents.benchmark,
        of_what=_of_what(study),
        plots=[{"plot": plot, "link": _download(plot.numbers), "wide": plot.width > WIDEST} for plot in shown],
        provenance=provenance(documents),
        glossary=glossary,
    )


def _classes(documents: ReportDocuments) -> list[str]:
    """Of the gallery and the mistakes."""
    held = [*documents.evaluations.values(), *documents.evidence.values()]
    return next((list(one["classes"]) for one in held), [])


def _of_what(study: dict[str, Any] | None) -> str:
    """Which runs the single models of a study are."""
    shown = (study or {}).get("evidence")
    return f" ({shown['budget']}, seed {shown['seed']})" if shown else ""


def _download(numbers: Any) -> str:
    return "data:application/json;base64," + base64.b64encode(json_text(numbers).encode()).decode()


def _overlaid(gallery: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**photo, "models": [{**model, "overlay": overlay(photo["photo"], model["map"])} for model in photo["models"]]}
        for photo in gallery
    ]


def _plots(documents: ReportDocuments) -> list[Plot]:
    found: list[Plot | None] = []
    study = documents.study
    if study is not None:
        found.append(_study_trade_off(study))
    if documents.benchmark is not None:
        found += _benchmark_trade_offs(documents.benchmark)
    if study is not None:
        for budget in study["budgets"]:
            differences = study_plots.differences(budget, study["baseline"])
            curves = {row["name"]: [run["val_accuracy_by_epoch"] for run in row["runs"]] for row in budget["rows"]}
            learning = study_plots.learning_curves(curves, name=f"learning-curves-{budget['name']}")
            found += [_of_budget(plot, budget) for plot in (differences, learning) if plot is not None]
    elif documents.epochs:
        curve = [row["val/accuracy"] for row in documents.epochs]
        found.append(study_plots.learning_curves({documents.name: [curve]}, name="learning-curve"))
    found += [model_plots.confusion(evaluation, name=name) for name, evaluation in documents.evaluations.items()]
    if documents.evidence:
        found += [
            draw(documents.evidence) for draw in (model_plots.reliability, model_plots.coverage, model_plots.robustness)
        ]
    return [plot for plot in found if plot is not None]


def _of_budget(plot: Plot, budget: dict[str, Any]) -> Plot:
    return replace(plot, caption=f"{budget['name']}: {plot.caption}")


def _study_trade_off(study: dict[str, Any]) -> Plot:
    """Of the budget with most labels: there the networks are at their best."""
    budget = max(study["budgets"], key=lambda budget: float(budget["labels"]))
    rows = [*budget["rows"]]
    points = []
    for row in rows:
        low, high = row["runs"][0]["accuracy_ci95"]
        point = {"name": row["name"], "accuracy": row["accuracy_mean"], "mmacs": row["macs"] / 1e6}
        if len(row["runs"]) == 1:
            point |= {"low": low, "high": high}
        points.append(point)
    teacher = study["teacher"]
    if teacher is not None:
        points.append({"name": "teacher", "accuracy": teacher["accuracy"], "mmacs": teacher["macs"] / 1e6})
    return _of_budget(study_plots.trade_off(points, x="mmacs", label="million multiply-adds a photo"), budget)


def _benchmark_trade_offs(benchmark: dict[str, Any]) -> list[Plot]:
    models = [model for model in benchmark["models"] if model["accuracy"] is not None]
    if not models:
        return []
    found = []
    for key, unit, label in (
        ("latency_ms_p50", 1.0, "latency, ms (median of one photo)"),
        ("size_mb", 1e-6, "size of the file, MB"),
    ):
        points = []
        for model in models:
            low, high = model["accuracy_ci95"]
            cost = model["latency_ms_p50"] if key == "latency_ms_p50" else unit * model["size_bytes"]
            name = f"{model['model']}, {model['engine']}, {model['precision']}"
            points.append({"name": name, "accuracy": model["accuracy"], "low": low, "high": high, key: cost})
        found.append(study_plots.trade_off(points, x=key, label=label))
    return found
