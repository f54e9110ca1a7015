"""Models that come with AgriDistill, by name: `agridistill predict tomato leaf.jpg`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agridistill.errors import ModelError, nearest
from agridistill.manifest import MANIFEST_NAME

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
