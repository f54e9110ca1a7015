"""Writes a self-contained HTML page from the result files of a folder, and each plot as SVG with its numbers."""

from __future__ import annotations

import base64
import csv
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from PIL import Image

from agridistill.colour import overlaid
from agridistill.errors import RunError
from agridistill.report import plots, words
from agridistill.report.plots import MAX_WIDTH, Plot
from agridistill.storage import json_text, write_json, write_text
from agridistill.version import __version__

Document = dict[str, Any]

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReportResult:
    """The paths of a report's files: the page, and for each plot an SVG file and a JSON file with its numbers."""

    page: Path
    plots: tuple[Path, ...]
    numbers: tuple[Path, ...]


def report(folder: Path) -> ReportResult:
    """Writes `report.html`, `figures/*.svg` and `figures/*.json` to a folder with result files.

    It needs `compare.json` or `evaluation.json`, and may have `metrics.csv`, `evidence/*.json` and `benchmark.json`.
    """
    try:
        documents = read_documents(folder)
        drawn = _draw_plots(documents)
        text = _render(documents, drawn)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, UndefinedError) as error:
        got = f"other or damaged files in '{folder}' ({type(error).__name__}: {error})"
        raise RunError("result files of this release", got, "run the command that wrote them again") from None
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
        "overlay": overlay,
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
    evidence_of = study.get("evidence") if study is not None else None
    return environment.get_template("report.html").render(
        title=f"{'Study' if study else 'Model'}: {documents.name}",
        study=study,
        summary=summary,
        evaluations=evaluations,
        # The classes of the photos in the gallery and among the mistakes.
        classes=next((list(one["classes"]) for one in (*evaluations.values(), *evidence.values())), []),
        evidence=evidence,
        gallery=documents.gallery,
        benchmark=documents.benchmark,
        of_what=f" ({evidence_of['budget']}, seed {evidence_of['seed']})" if evidence_of else "",
        plots=[{"plot": plot, "wide": plot.width > MAX_WIDTH} for plot in drawn],
        provenance=provenance(documents),
        glossary=words.glossary,
    )


def overlay(photo: str, attention: Sequence[Sequence[float]]) -> str:
    """Draws an attention map over a photo: yellow where the model looks most, blue where it looks least.

    `photo` and the result are data URIs of JPEGs; `attention` is the map as rows of values, 0 to 1.
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
    """Draws accuracy against computation for the budget with the most labels, in which networks perform best."""
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
    """Draws accuracy against latency and against size, for the models whose accuracy is known."""
    points = []
    for model in benchmark["models"]:
        if model["accuracy"] is not None:
            low, high = model["accuracy_ci95"]
            name = f"{model['model']}, {model['engine']}, {model['precision']}"
            costs = {"latency_ms_p50": model["latency_ms_p50"], "size_mb": model["size_bytes"] / 1e6}
            points.append({"name": name, "accuracy": model["accuracy"], "low": low, "high": high, **costs})
    labels = {"latency_ms_p50": "latency, ms (median of one photo)", "size_mb": "size of the file, MB"}
    return [plots.trade_off(points, x=key, label=label) for key, label in labels.items() if points]


@dataclass(frozen=True)
class ReportDocuments:
    """The result files that a report is made from; those that the folder lacks are None or empty."""

    folder: Path
    study: Document | None  # compare.json; None for a single model
    evaluations: dict[str, Document]  # evaluation.json by the name of the model
    val_accuracy: list[float]  # validation accuracy of each epoch, from metrics.csv of a single run
    evidence: dict[str, Document]  # by the name of the model
    gallery: list[Document]  # photos with attention maps
    benchmark: Document | None  # benchmark.json of `agridistill benchmark --out`
    environment: Document  # environment.json of the run, or of one run of the study
    modified: float  # time of the newest result file, in seconds since 1970

    @property
    def name(self) -> str:
        """Name of the folder, with bytes that are not UTF-8 escaped."""
        return str(_printable(self.folder.resolve().name))


def read_documents(folder: Path) -> ReportDocuments:
    """Reads the result files that `compare`, `train`, `distill` or `evaluate --evidence` wrote to a folder."""
    if not folder.is_dir():
        raise RunError("a folder with results", f"'{folder}', which is not a folder", "check the path")
    study, evaluation = _read_json(folder / "compare.json"), _read_json(folder / "evaluation.json")
    if study is None and evaluation is None:
        remedy = "write them with 'agridistill compare', 'train', 'distill' or 'evaluate MODEL DATA --evidence DIR'"
        raise RunError("a folder with compare.json or evaluation.json", f"'{folder}' without them", remedy)
    names = sorted(path.stem for path in (folder / "evidence").glob("*.json") if path.stem != "gallery")
    if study is not None:
        _require_version(study, "compare.json")
        # The folder may also hold files of earlier versions of the study.
        names = [name for name in study.get("evidence", {}).get("models", names) if name in names]
    evidence = {name: _require_version(_read_json(folder / f"evidence/{name}.json"), name) for name in names}
    gallery = _read_json(folder / "evidence/gallery.json")
    with_results = [folder / name for name in ("compare.json", "evaluation.json", "benchmark.json", "metrics.csv")]
    runs = _reported_runs(folder, study) if study is not None else {_printable(folder.resolve().name): folder}
    evaluations = {name: _read_json(run / "evaluation.json") for name, run in runs.items()}
    environments = [_read_json(run / "environment.json") for run in runs.values()]
    return ReportDocuments(
        folder=folder,
        study=study,
        evaluations={name: document for name, document in evaluations.items() if document is not None},
        val_accuracy=_read_val_accuracy(folder / "metrics.csv"),
        evidence=evidence,
        gallery=_require_version(gallery, "gallery.json")["photos"] if gallery is not None else [],
        benchmark=_read_json(folder / "benchmark.json"),
        environment=next((document for document in environments if document is not None), {}),
        modified=max(path.stat().st_mtime for path in with_results if path.exists()),
    )


def provenance(documents: ReportDocuments) -> list[tuple[str, str]]:
    """Returns rows (name, value) about the origin of the results: date, versions, commands and machines."""
    environment = documents.environment
    folder = shlex.quote(_printable(str(documents.folder)))
    rows = [("Results of", f"{datetime.fromtimestamp(documents.modified, UTC):%d %B %Y, %H:%M} UTC")]
    if environment:
        versions, hardware = environment["versions"], environment["hardware"]
        used = f"AgriDistill {versions['agridistill']}, torch {versions['torch']}, python {versions['python']}"
        rows.append(("Trained with", used))
        data, teacher = shlex.quote(environment["data"]), environment["teacher"]
        recipe = shlex.quote(_printable(f"{documents.folder}/recipe.toml"))
        if documents.study is not None:
            command = f"compare {data} --recipe RECIPE"
        elif teacher is not None:
            command = f"distill {data} --teacher {shlex.quote(teacher)} --recipe {recipe}"
        else:
            command = f"train {data} --recipe {recipe}"
        rows.append(("By", f"agridistill {command} --out {folder}"))
        device = "" if hardware["device"] == "cpu" else f"{hardware['device']}; "
        rows.append(("Trained on", f"{device}{hardware['processor']}, {hardware['cores']} cores"))
    host = (documents.benchmark or {}).get("host")
    if host:
        rows.append(("Speed measured on", f"{host['processor']}, {host['cores']} cores; {host['system']}"))
    return [*rows, ("This page by", f"agridistill report {folder}, AgriDistill {__version__}")]


def _reported_runs(folder: Path, study: Document) -> dict[str, Path]:
    """Returns the run folders of the best method and the baseline by name, for the budget of the evidence."""
    wanted = study.get("evidence", {}).get("budget")  # absent after `compare --no-evidence`
    budget = next((budget for budget in study["budgets"] if budget["name"] == wanted), study["budgets"][0])
    rows = {row["name"]: row for row in budget["rows"]}
    names = dict.fromkeys((budget["best"], study["baseline"]))
    return {name: folder / rows[name]["runs"][0]["run"] for name in names if name in rows}


def _require_version(document: Document | None, name: str) -> Document:
    version = document.get("format_version") if isinstance(document, dict) else None
    if document is None or version != _FORMAT_VERSION:
        expected = f"result files of version {_FORMAT_VERSION}"
        raise RunError(expected, f"version {version} in '{name}'", "create it again with this release")
    return document


def _read_json(path: Path) -> Document | None:
    try:
        document: Document = _printable(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            "a result file in JSON", f"a damaged '{path}' ({error})", "run the command that wrote it again"
        ) from None
    return document


def _printable(value: Any) -> Any:
    """Returns a JSON value whose strings can be encoded: names of files may contain bytes that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _printable(one) for key, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list) else value


def _read_val_accuracy(metrics: Path) -> list[float]:
    if not metrics.exists():
        return []
    with metrics.open(encoding="utf-8") as file:
        return [float(row["val/accuracy"]) for row in csv.DictReader(file)]
