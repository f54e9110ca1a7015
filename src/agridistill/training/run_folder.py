"""A run folder: its files, and the rules for starting, resuming and finishing a run."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
import torch

from agridistill.data.labels import Layout
from agridistill.data.likeness import LEARNT_NAME
from agridistill.errors import RunError
from agridistill.manifest import MANIFEST_NAME
from agridistill.storage import write_json, write_text
from agridistill.training.settings import DistillConfig, TrainConfig

# Settings that a resume may change: they do not change what a run learns.
MAY_DIFFER = frozenset({"keep_views", "workers", "devices", "nodes"})
_PACKAGES = ("agridistill", "torch", "torchvision", "timm", "lightning", "numpy", "Pillow")


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"  # all settings, resolved
        self.splits = path / "splits.json"  # the photos of training, validation and test
        self.environment = path / "environment.json"  # versions, hardware, seed and data fingerprint
        self.weights = path / "model.safetensors"  # of the best epoch
        self.manifest = path / MANIFEST_NAME  # the model's contract; written after the training
        self.checkpoint = path / "last.ckpt"  # state of the last epoch, for a resume only
        self.lock = path / ".lock"  # held by the process that trains
        self.learnt = path / LEARNT_NAME  # hashes of the photos that the model learnt from; see `data.likeness`
        self.caches = path / "cache"  # this model's outputs as a teacher, for views of other runs
        self.metrics = path / "metrics.csv"  # one row an epoch
        self.evaluation = path / "evaluation.json"  # the last file of a run: it marks the run as finished

    def require_startable(self, *, resume: bool) -> None:
        """Checks that a run may start here, before anything is computed.

        Raises:
            RunError: finished, unfinished without `resume`, nothing to resume, or a folder of something else.
        """
        another = "choose another --out"
        if self.evaluation.exists():
            raise RunError("a new run folder", f"'{self.path}', which holds a finished run", another)
        if self.path.exists() and not self.path.is_dir():
            raise RunError("a run folder", f"the file '{self.path}'", another)
        started = self.recipe.exists()
        if resume and not started:
            raise RunError("an unfinished run to resume", f"none in '{self.path}'", "start it without --resume")
        if started and not resume:
            got = f"'{self.path}', which holds an unfinished run"
            raise RunError("a new run folder", got, f"continue it with --resume or {another}")
        if started or not self.path.exists():
            return
        # A start that was killed, or met a full disk, leaves these; a split alone may be the user's.
        names = {path.name for path in self.path.iterdir() if path.suffix != ".part"} - {self.lock.name}
        begun = self.environment.name in names and names <= {self.environment.name, self.splits.name}
        if names and not begun:
            raise RunError("a new or empty folder", f"'{self.path}', which holds other files", another)

    def write_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Writes the resolved settings."""
        write_text(self.recipe, tomli_w.dumps(without_none(asdict(config))))

    def require_same_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Checks that a resume has the settings of the run.

        Raises:
            RunError: names the first setting that differs.
        """
        try:
            stored = _flatten(tomllib.loads(self.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError("the recipe of the run", f"a damaged '{self.recipe}' ({error})", "start a new run") from None
        current = _flatten(without_none(asdict(config)))
        # Settings that were added later have their defaults in runs of earlier versions.
        defaults = _flatten(without_none(asdict(type(config)())))
        stored = {key: value for key, value in defaults.items() if key in current} | stored
        for key in sorted(stored.keys() | current.keys()):
            if key.rsplit(".", 1)[-1] not in MAY_DIFFER and stored.get(key) != current.get(key):
                raise RunError(
                    f"{key} = {stored.get(key)} as in the run that is resumed",
                    str(current.get(key)),
                    "leave the option away or start a new run",
                )

    def read_recipe(self) -> dict[str, Any]:
        """The sections of the recipe; empty where it cannot be read."""
        try:
            return tomllib.loads(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def require_same_teacher(self, sha256: str | None) -> None:
        """Checks that a resume has the teacher of the run.

        Raises:
            RunError: another teacher.
        """
        before = self.read_environment().get("teacher_sha256")
        if before != sha256:
            expected = f"the teacher that the run started with ({str(before)[:12]}…)"
            raise RunError(expected, f"{str(sha256)[:12]}…", "pass that teacher or start a new run")

    def require_same_data(self, data: Path, fingerprint: str) -> None:
        """Checks that a resume has the photos of the run.

        Raises:
            RunError: other photos.
        """
        if self.read_environment().get("data_fingerprint") != fingerprint:
            raise RunError("the data that the run started with", f"other photos in '{data}'", "start a new run")

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The state of the last epoch; None where the run was stopped before its first one ended.

        Raises:
            RunError: the file is damaged.
        """
        if not self.checkpoint.exists():
            return None
        try:
            # Only data is read: a checkpoint from elsewhere may contain code.
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch raises RuntimeError, UnpicklingError, EOFError, … for the same damage.
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            got = f"a damaged '{self.checkpoint}' ({reason})"
            raise RunError("a whole checkpoint", got, "start a new run") from None
        return state

    def write_environment(self, document: Mapping[str, Any]) -> None:
        """Writes what the result depends on beside the recipe: versions, hardware and the document."""
        hardware = {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        versions = {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}
        write_json(self.environment, {"versions": versions, "hardware": hardware, **document})

    def read_environment(self) -> dict[str, Any]:
        """The environment document; empty where there is none.

        Raises:
            RunError: the file is damaged.
        """
        try:
            document = json.loads(self.environment.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            got = f"a damaged '{self.environment}' ({error})"
            raise RunError("the environment of a run", got, "start a new run") from None
        return document if isinstance(document, dict) else {}

    def read_layout(self) -> Layout:
        """How the labels of the run's photos were found.

        Raises:
            RunError: a damaged environment.
        """
        return Layout.from_json(self.read_environment().get("layout"))


def run_of(weights: Path) -> RunFolder | None:
    """The run of weights: its folder, or its own weights file; None where they are of no run."""
    run = RunFolder(weights if weights.is_dir() else weights.parent)
    return run if run.recipe.exists() and weights in (run.path, run.weights) else None


def without_none(value: Any) -> Any:
    """The same nested value without None entries, which TOML cannot express."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(item) for item in value]
    return value


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
