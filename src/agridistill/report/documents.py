"""The result files of a folder, and where they come from."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agridistill.errors import RunError
from agridistill.version import __version__

Document = dict[str, Any]

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReportDocuments:
    """The input of a report; what a folder does not contain is None or empty."""

    folder: Path
    study: Document | None  # compare.json; None for a single model
    evaluations: dict[str, Document]  # evaluation.json by the name of the model
    val_accuracy: list[float]  # by epoch, from metrics.csv of a single run
    evidence: dict[str, Document]  # by the name of the model
    gallery: list[Document]  # photos with attention maps
    benchmark: Document | None  # benchmark.json of `agridistill benchmark --out`
    environment: Document  # environment.json of the run, or of one run of the study
    modified: float  # the newest result file, seconds since 1970

    @property
    def name(self) -> str:
        """Of the folder."""
        return str(_printable(self.folder.resolve().name))


def read_documents(folder: Path) -> ReportDocuments:
    """Reads the result files in the folder of a study or a run.

    Raises:
        RunError: no such folder or files, or a damaged file.
    """
    if not folder.is_dir():
        raise RunError("the folder of a study or a run", f"'{folder}', which is none", "check the path")
    study, evaluation = _read_json(folder / "compare.json"), _read_json(folder / "evaluation.json")
    if study is None and evaluation is None:
        raise RunError(
            "a folder with compare.json or evaluation.json",
            f"'{folder}' without them",
            "make them with 'agridistill compare', 'distill' or 'evaluate MODEL DATA --evidence DIR'",
        )
    names = sorted(path.stem for path in (folder / "evidence").glob("*.json") if path.stem != "gallery")
    if study is not None:
        _require_version(study, "compare.json")
        # The folder may hold other files, of earlier versions of the study.
        names = [name for name in study.get("evidence", {}).get("models", names) if name in names]
    evidence = {name: _require_version(_read_json(folder / f"evidence/{name}.json"), name) for name in names}
    gallery = _read_json(folder / "evidence/gallery.json")
    with_results = [folder / name for name in ("compare.json", "evaluation.json", "benchmark.json", "metrics.csv")]
    try:
        runs = _shown_runs(folder, study) if study is not None else {_printable(folder.resolve().name): folder}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise unknown_content(folder, error) from None
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


def unknown_content(folder: Path, error: Exception) -> RunError:
    """The error for result files that lack expected keys, for example of another release."""
    got = f"others in '{folder}' ({type(error).__name__}: {error})"
    return RunError("result files as this release writes them", got, "make them again")


def provenance(documents: ReportDocuments) -> list[tuple[str, str]]:
    """Pairs of a name and a value: date, versions, commands, machines, as far as the result files name them."""
    environment = documents.environment
    versions = environment.get("versions", {})
    folder = shlex.quote(_printable(str(documents.folder)))
    rows = [("Results of", f"{datetime.fromtimestamp(documents.modified, UTC):%d %B %Y, %H:%M} UTC")]
    if "agridistill" in versions:
        others = [f"{name} {versions[name]}" for name in ("torch", "python") if name in versions]
        rows.append(("Trained with", ", ".join([f"AgriDistill {versions['agridistill']}", *others])))
    if "data" in environment:
        data, teacher = shlex.quote(environment["data"]), environment.get("teacher")
        recipe = shlex.quote(_printable(f"{documents.folder}/recipe.toml"))
        if documents.study is not None:
            command = f"compare {data} --recipe RECIPE"
        elif isinstance(teacher, str):
            command = f"distill {data} --teacher {shlex.quote(teacher)} --recipe {recipe}"
        else:
            command = f"train {data} --recipe {recipe}"
        rows.append(("By", f"agridistill {command} --out {folder}"))
    if "hardware" in environment:
        hardware = environment["hardware"]
        device = "" if hardware["device"] == "cpu" else f"{hardware['device']}; "
        rows.append(("Trained on", f"{device}{hardware['processor']}, {hardware['cores']} cores"))
    host = (documents.benchmark or {}).get("host")
    if host:
        rows.append(("Speed measured on", f"{host['processor']}, {host['cores']} cores; {host['system']}"))
    return [*rows, ("This page by", f"agridistill report {folder}, AgriDistill {__version__}")]


def _shown_runs(folder: Path, study: Document) -> dict[str, Path]:
    """Run folders of the best method and the baseline, of the evidence's budget and seed."""
    wanted = study.get("evidence", {}).get("budget")
    budget = next((budget for budget in study["budgets"] if budget["name"] == wanted), study["budgets"][0])
    rows = {row["name"]: row for row in budget["rows"]}
    names = dict.fromkeys((budget["best"], study["baseline"]))
    return {name: folder / rows[name]["runs"][0]["run"] for name in names if name in rows}


def _require_version(document: Document | None, name: str) -> Document:
    version = document.get("format_version") if isinstance(document, dict) else None
    if document is None or version != _FORMAT_VERSION:
        expected = f"result files of version {_FORMAT_VERSION}"
        raise RunError(expected, f"version {version} in '{name}'", "make it again with this release")
    return document


def _read_json(path: Path) -> Document | None:
    try:
        document: Document = _printable(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError("a result file in JSON", f"a damaged '{path}' ({error})", "make it again") from None
    return document


def _printable(value: Any) -> Any:
    """The value with strings that can be encoded: names of files may contain bytes that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _printable(one) for key, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list) else value


def _read_val_accuracy(metrics: Path) -> list[float]:
    try:
        with metrics.open(encoding="utf-8") as file:
            return [float(row["val/accuracy"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError("epochs in CSV", f"a damaged '{metrics}' ({error})", "remove the file") from None
