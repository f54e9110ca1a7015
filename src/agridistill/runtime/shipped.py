"""Models that come with AgriDistill, by name: `agridistill predict tomato leaf.jpg`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agridistill.errors import ModelError, nearest
from agridistill.manifest import MANIFEST_NAME, read_manifest

SHIPPED: Mapping[str, str] = {"tomato": "tomato/tomato-int8.onnx"}
"""Name -> the artefact below the folder of shipped models."""

# In a wheel beside this package's modules, in a checkout at its root.
_FOLDERS = (Path(__file__).parents[1] / "shipped", Path(__file__).parents[3] / "models")


def model_path(model: Path | str) -> Path:
    """The path of a model, given as path or as the name of a shipped model.

    A model of that name in the current folder comes first; a name without a model is returned as it is, for the
    caller's error.
    """
    path, shipped = Path(model), _shipped_file(str(model))
    return path if shipped is None or path.is_file() or (path / MANIFEST_NAME).exists() else shipped


def shipped_models() -> list[dict[str, Any]]:
    """The figures of every shipped model, as `agridistill models --json` prints them.

    Raises:
        ModelError: one is missing from this installation, or its manifest is damaged.
    """
    found = []
    for name in SHIPPED:
        file = _shipped_file(name)
        if file is None:
            raise missing_model(Path(name))
        manifest = read_manifest(file.with_suffix(".json"))
        evaluation = json.loads(file.with_name(f"evaluation-{manifest.precision}.json").read_text(encoding="utf-8"))
        figures = {
            "name": name,
            "file": str(file),
            "size_bytes": file.stat().st_size,
            "model": manifest.model,
            "precision": manifest.precision,
            "image_size": manifest.preprocessing.image_size,
            "classes": list(manifest.classes),
            "test_accuracy": evaluation["accuracy"],
            "test_accuracy_ci95": evaluation["accuracy_ci95"],
            "test_photos": evaluation["photos"],
            "val_accuracy": manifest.measured.get("accuracy"),
            "val_photos": manifest.measured.get("photos"),
            "threshold": manifest.threshold,
        }
        found.append(figures)
    return found


def missing_model(model: Path) -> ModelError:
    """The error for a model that does not exist; a bare name may have been meant as a shipped model's."""
    remedy = f"check the path{shipped_hint(model)}"
    return ModelError("a run folder, an exported model or a shipped one", f"'{model}', which does not exist", remedy)


def shipped_hint(model: Path) -> str:
    """An addition to a remedy: shipped models, if a bare name may have been meant as one's; empty for other paths."""
    name = str(model)
    if name in SHIPPED:
        return f"; the shipped model '{name}' is missing from this installation: install agridistill anew"
    if len(model.parts) != 1:
        return ""
    return f"; shipped models: {nearest(name, SHIPPED).removeprefix('known: ')}"


def _shipped_file(name: str) -> Path | None:
    files = [folder / SHIPPED[name] for folder in _FOLDERS] if name in SHIPPED else []
    return next((file for file in files if file.is_file()), None)
