"""The result files of a folder, as far as they are there."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agridistill.errors import RunError

Document = dict[str, Any]

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReportDocuments:
    """What a report is made from.

    Attributes:
        folder: that was asked for.
        study: `compare.json`; None for a single model.
        evaluations: `evaluation.json` by the name of the model.
        epochs: rows of `metrics.csv` of a single run.
        evidence: by the name of the model.
        gallery: photos with attention maps.
        benchmark: `benchmark.json`, of `agridistill benchmark --out`.
        environment: `environment.json` of the run, or of one run of the study; empty where there is none.
        modified: when the newest result file was written, seconds since 1970.
    """

    folder: Path
    study: Document | None = None
    evaluations: dict[str, Document] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)
    evidence: dict[str, Document] = field(default_factory=dict)
    gallery: list[Document] = field(default_factory=list)
    benchmark: Document | None = None
    environment: Document = field(default_factory=dict)
    modified: float = 0.0

    @property
    def name(self) -> str:
        """The folder's."""
        return str(_as_text(self.folder.resolve().name))

    @property
    def shown_folder(self) -> str:
        """The folder as it was given, as text that can be drawn."""
        return str(_as_text(str(self.folder)))


def read_documents(folder: Path) -> ReportDocuments:
    """Reads the result files of a study's or a run's folder.

    Raises:
        RunError: neither of them, or a damaged file.
    """
    if not folder.is_dir():
        raise RunError("the folder of a study or a run", f"'{folder}', which is none", "check the path")
    study = _json(folder / "compare.json")
    own = _json(folder / "evaluation.json")
    if study is None and own is None:
        raise RunError(
            "a folder with compare.json or evaluation.json",
            f"'{folder}' without them",
            "make them with 'agridistill compare', 'distill' or 'evaluate MODEL DATA --evidence DIR'",
        )
    names = sorted(path.stem for path in (folder / "evidence").glob("*.json") if path.stem != "gallery")
    if study is not None:
        # Others were left by an earlier form of the study.
        names = [name for name in study.get("evidence", {}).get("models", names) if name in names]
    evidence = {name: _of_version(_json(folder / "evidence" / f"{name}.json"), name) for name in names}
    gallery = _json(folder / "evidence" / "gallery.json")
    if study is not None:
        _of_version(study, "compare.json")
    try:
        runs = _runs(folder, study) if study is not None else {_as_text(folder.resolve().name): folder}
        read = {name: _json(run / "evaluation.json") for name, run in runs.items()}
        evaluations = {name: document for name, document in read.items() if document is not None}
        environments = [_json(run / "environment.json") for run in runs.values()]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        told = f"others in '{folder}' ({type(error).__name__}: {error})"
        raise RunError("result files as this release writes them", told, "make them again") from None
    return ReportDocuments(
        folder=folder,
        study=study,
        evaluations=evaluations,
        epochs=_metrics(folder / "metrics.csv"),
        evidence=evidence,
        gallery=_of_version(gallery, "gallery.json")["photos"] if gallery is not None else [],
        benchmark=_json(folder / "benchmark.json"),
        environment=next((one for one in environments if one is not None), {}),
        modified=max(path.stat().st_mtime for path in _result_files(folder)),
    )


def _result_files(folder: Path) -> list[Path]:
    names = ("compare.json", "evaluation.json", "benchmark.json", "metrics.csv")
    return [path for path in (folder / name for name in names) if path.exists()]


def _runs(folder: Path, study: Document) -> dict[str, Path]:
    """Folders of the best method and the baseline, of the budget and the seed that the evidence is of."""
    wanted = study.get("evidence", {}).get("budget")
    budget = next((budget for budget in study["budgets"] if budget["name"] == wanted), study["budgets"][0])
    rows = {row["name"]: row for row in budget["rows"]}
    names = dict.fromkeys((budget["best"], study["baseline"]))
    return {name: folder / rows[name]["runs"][0]["run"] for name in names if name in rows}


def _of_version(document: Document | None, name: str) -> Document:
    found = document.get("format_version") if isinstance(document, dict) else None
    if document is None or found != _FORMAT_VERSION:
        raise RunError(
            f"result files of version {_FORMAT_VERSION}",
            f"version {found} in '{name}'",
            "make it again with this release",
        )
    return document


def _json(path: Path) -> Document | None:
    try:
        document: Document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError("a result file in JSON", f"a damaged '{path}' ({error})", "make it again") from None
    cleaned: Document = _as_text(document)
    return cleaned


def _as_text(value: Any) -> Any:
    """All strings as what can be drawn and written: names of files and folders may hold bytes that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _as_text(one) for key, one in value.items()}
    return [_as_text(one) for one in value] if isinstance(value, list) else value


def _metrics(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(encoding="utf-8") as file:
            # A term that an epoch did not have is an empty cell.
            return [{name: float(value) for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, TypeError, ValueError) as error:
        raise RunError("epochs in CSV", f"a damaged '{path}' ({error})", "remove the file") from None
