"""When, with what and where the results of a report were made, as far as their files tell."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from agridistill.report.documents import Document, ReportDocuments
from agridistill.version import __version__


def provenance(documents: ReportDocuments) -> list[tuple[str, str]]:
    """Pairs of a name and a value: date, version, commands, machine. What no file tells is left out."""
    environment = documents.environment
    versions = environment.get("versions", {})
    made = datetime.fromtimestamp(documents.modified, UTC)
    found = [("Results of", f"{made:%d %B %Y, %H:%M} UTC")]
    if "agridistill" in versions:
        others = [f"{name} {versions[name]}" for name in ("torch", "python") if name in versions]
        found.append(("Trained with", ", ".join([f"AgriDistill {versions['agridistill']}", *others])))
    command = _training_command(documents)
    if command:
        found.append(("By", command))
    if "hardware" in environment:
        found.append(("Trained on", _machine(environment["hardware"])))
    host = (documents.benchmark or {}).get("host")
    if host:
        found.append(("Speed measured on", f"{host['processor']}, {host['cores']} cores; {host['system']}"))
    page = f"agridistill report {shlex.quote(documents.shown_folder)}, AgriDistill {__version__}"
    return [*found, ("This page by", page)]


def _training_command(documents: ReportDocuments) -> str:
    environment = documents.environment
    if "data" not in environment:
        return ""
    data = shlex.quote(environment["data"])
    if documents.study is not None:
        return f"agridistill compare {data} --recipe RECIPE --out {shlex.quote(documents.shown_folder)}"
    teacher = environment.get("teacher")
    verb, more = ("distill", f" --teacher {shlex.quote(teacher)}") if isinstance(teacher, str) else ("train", "")
    recipe = shlex.quote(f"{documents.shown_folder}/recipe.toml")
    return f"agridistill {verb} {data}{more} --recipe {recipe} --out {shlex.quote(documents.shown_folder)}"


def _machine(hardware: Document) -> str:
    processor = f"{hardware['processor']}, {hardware['cores']} cores"
    return processor if hardware["device"] == "cpu" else f"{hardware['device']}; {processor}"
