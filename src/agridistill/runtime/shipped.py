"""Models that come with AgriDistill, by name: `agridistill predict tomato leaf.jpg`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agridistill.errors import ModelError, nearest
from agridistill.manifest import MANIFEST_NAME, ModelManifest, read_manifest

SHIPPED: Mapping[str, str] = {"tomato": "tomato/tomato-int8.onnx"}
"""Name -> the artefact below the folder of shipped models."""

# In a wheel beside this package's modules, in a checkout at its root.
_FOLDERS = (Path(__file__).parents[1] / "shipped", Path(__file__).parents[3] / "models")


def model_path(model: Path | str) -> Path:
    """The path of a model that was named: a shipped one's, unless a model of that name stands in the current folder.

    Args:
        model: a path, or the name of a shipped model.

    Returns:
        Where it is; a name that nothing stands behind comes back as it is, for the caller's error.
    """
    path = Path(model)
    name = str(model)
    if name not in SHIPPED or path.is_file() or (path / MANIFEST_NAME).exists():
        return path
    for folder in _FOLDERS:
        if (folder / SHIPPED[name]).is_file():
            return folder / SHIPPED[name]
    return path


@dataclass(frozen=True)
class ShippedModel:
    """A model that comes with AgriDistill.

    Attributes:
        name: as commands and `load` take it.
        file: the exported model.
        size_bytes: of the file.
        manifest: of the file.
        evaluation: on leaves that it never saw, as `evaluate` wrote it.
    """

    name: str
    file: Path
    size_bytes: int
    manifest: ModelManifest
    evaluation: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Every figure that a table shows, and more."""
        measured = self.manifest.measured
        return {
            "name": self.name,
            "file": str(self.file),
            "size_bytes": self.size_bytes,
            "model": self.manifest.model,
            "precision": self.manifest.precision,
            "image_size": self.manifest.preprocessing.image_size,
            "classes": list(self.manifest.classes),
            "test_accuracy": self.evaluation["accuracy"],
            "test_accuracy_ci95": self.evaluation["accuracy_ci95"],
            "test_photos": self.evaluation["photos"],
            "val_accuracy": measured.get("accuracy"),
            "val_photos": measured.get("photos"),
            "threshold": self.manifest.threshold,
        }


def shipped_models() -> list[ShippedModel]:
    """Every shipped model with its manifest.

    Raises:
        ModelError: one is missing from this installation, or its manifest is damaged.
    """
    found = []
    for name in SHIPPED:
        files = [folder / SHIPPED[name] for folder in _FOLDERS]
        file = next((one for one in files if one.is_file()), None)
        if file is None:
            raise missing_model(Path(name))
        manifest = read_manifest(file.with_suffix(".json"))
        evaluation = json.loads(file.with_name(f"evaluation-{manifest.precision}.json").read_text(encoding="utf-8"))
        found.append(ShippedModel(name, file, file.stat().st_size, manifest, evaluation))
    return found


def missing_model(model: Path) -> ModelError:
    """What is told of a model that is not there; a bare name may have been meant as a shipped model's."""
    return ModelError(
        "a run folder, an exported model or a shipped one",
        f"'{model}', which does not exist",
        f"check the path{shipped_hint(model)}",
    )


def shipped_hint(model: Path) -> str:
    """What to add to a remedy where a bare name may have been meant as a shipped model's; empty for other paths."""
    name = str(model)
    if name in SHIPPED:
        return f"; the shipped model '{name}' is missing from this installation: install agridistill anew"
    if len(model.parts) != 1:
        return ""
    return f"; shipped models: {nearest(name, SHIPPED).removeprefix('known: ')}"
