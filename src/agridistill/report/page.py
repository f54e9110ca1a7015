"""One self-contained HTML page, and each plot with its numbers beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from PIL import Image

from agridistill.heatmaps import overlaid
from agridistill.report import plots, words
from agridistill.report.documents import Document, ReportDocuments, provenance, read_documents, unknown_content
from agridistill.report.plots import MAX_WIDTH, Plot
from agridistill.storage import json_text, write_json, write_text


@dataclass(frozen=True)
class ReportResult:
    """Files of a report: the page, and for each plot an SVG file and its numbers as JSON."""

    page: Path
    plots: tuple[Path, ...]
    numbers: tuple[Path, ...]


def report(folder: Path) -> ReportResult:
    """Writes `report.html`, `figures/*.svg` and `figures/*.json`.

    Args:
        folder: with `compare.json` or `evaluation.json`; also uses `metrics.csv`, `evidence/*.json`, `benchmark.json`.

    Raises:
        RunError: no result files, or a damaged file.
    """
    documents = read_documents(folder)
    try:
        drawn = _draw_plots(documents)
        text = _render(documents, drawn)
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
        raise unknown_content(folder, error) from None
    page = folder / "report.html"
    write_text(page, text)
    pictures = tuple(folder / f"figures/{plot.name}.svg" for plot in drawn)
    numbers = tuple(file.with_suffix(".json") for file in pictures)
    for plot, picture, figures in zip(drawn, pictures, numbers, strict=True):
        write_text(picture, plot.svg)
        write_json(figures, plot.numbers)
    return ReportResult(page, pictures, numbers)


def _render(documents: ReportDocuments, drawn: Sequence[Plot]) -> str:
    environment = Environment(
        loader=PackageLoader("agridistill.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "base64_json": lambda numbers: base64.b64encode(json_text(numbers).encode()).decode(),
        "plain": words.plain_name,
        "short": words.short_name,
        "signed": "{:+.2f}".format,
    }
    study, evaluations, evidence = documents.study, documents.evaluations, documents.evidence
    if study is not None:
        summary = words.study_summary(study)
    else:
        summary = [line for name, one in evaluations.items() for line in words.model_summary(name, one)]
    summary += [line for name, one in evidence.items() for line in words.evidence_summary(name, one)]
    shown = (study or {}).get("evidence")
    return environment.get_template("report.html").render(
        title=f"{'Study' if study else 'Model'}: {documents.name}",
        study=study,
        summary=summary,
        evaluations=evaluations,
        # Of the gallery and the mistakes.
        classes=next((list(one["classes"]) for one in (*evaluations.values(), *evidence.values())), []),
        evidence=evidence,
        gallery=[_with_overlays(photo) for photo in documents.gallery],
        benchmark=documents.benchmark,
        of_what=f" ({shown['budget']}, seed {shown['seed']})" if shown else "",
        plots=[{"plot": plot, "wide": plot.width > MAX_WIDTH} for plot in drawn],
        provenance=provenance(documents),
        glossary=words.glossary,
    )


def _with_overlays(photo: Document) -> Document:
    models = [{**model, "overlay": overlay(photo["photo"], model["map"])} for model in photo["models"]]
    return {**photo, "models": models}


def overlay(photo: str, attention: Sequence[Sequence[float]]) -> str:
    """A photo with a map over it: yellow where a model looks, blue where it does not.

    Args:
        photo: data URI of a JPEG.
        attention: rows of values, of any scale.

    Returns:
        Data URI of a JPEG of the same size.
    """
    encoded = photo.partition("base64,")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("JPEG",)).convert("RGB")
    buffer = io.BytesIO()
    overlaid(picture, np.array(attention, np.float32)).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _draw_plots(documents: ReportDocuments) -> list[Plot]:
    study, evidence = documents.study, documents.evidence
    drawn = [] if study is None else [_study_trade_off(study)]
    if documents.benchmark is not None:
        drawn += _benchmark_trade_offs(documents.benchmark)
    if study is not None:
        for budget in study["budgets"]:
            difference = plots.differences(budget, study["baseline"])
            curves = {row["name"]: [run["val_accuracy_by_epoch"] for run in row["runs"]] for row in budget["rows"]}
            learning = plots.learning_curves(curves, name=f"learning-curves-{budget['name']}")
            drawn += [_of_budget(plot, budget) for plot in (difference, learning) if plot is not None]
    elif documents.val_accuracy:
        drawn.append(plots.learning_curves({documents.name: [documents.val_accuracy]}, name="learning-curve"))
    drawn += [plots.confusion(evaluation, name=name) for name, evaluation in documents.evaluations.items()]
    if evidence:
        drawn += [plots.reliability(evidence), plots.coverage(evidence), plots.robustness(evidence)]
    return drawn


def _of_budget(plot: Plot, budget: Document) -> Plot:
    return replace(plot, caption=f"{budget['name']}: {plot.caption}")


def _study_trade_off(study: Document) -> Plot:
    """The trade-off of the budget with most labels, under which the networks are at their best."""
    budget = max(study["budgets"], key=lambda budget: float(budget["labels"]))
    points = []
    for row in budget["rows"]:
        point = {"name": row["name"], "accuracy": row["accuracy_mean"], "mmacs": row["macs"] / 1e6}
        if len(row["runs"]) == 1:
            point["low"], point["high"] = row["runs"][0]["accuracy_ci95"]
        points.append(point)
    teacher = study["teacher"]
    if teacher is not None:
        points.append({"name": "teacher", "accuracy": teacher["accuracy"], "mmacs": teacher["macs"] / 1e6})
    return _of_budget(plots.trade_off(points, x="mmacs", label="million multiply-adds a photo"), budget)


def _benchmark_trade_offs(benchmark: Document) -> list[Plot]:
    """Accuracy against latency and against size; nothing for models of unknown accuracy."""
    points = []
    for model in benchmark["models"]:
        if model["accuracy"] is not None:
            low, high = model["accuracy_ci95"]
            name = f"{model['model']}, {model['engine']}, {model['precision']}"
            costs = {"latency_ms_p50": model["latency_ms_p50"], "size_mb": model["size_bytes"] / 1e6}
            points.append({"name": name, "accuracy": model["accuracy"], "low": low, "high": high, **costs})
    labels = {"latency_ms_p50": "latency, ms (median of one photo)", "size_mb": "size of the file, MB"}
    return [plots.trade_off(points, x=key, label=label) for key, label in labels.items() if points]
