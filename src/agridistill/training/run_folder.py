"""A run folder: what a run leaves behind, and the rules for starting, resuming and finishing one."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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

# A resumed run may use more or fewer processes, or keep its views, but must not learn differently.
MAY_DIFFER = frozenset({"keep_views", "workers", "devices", "nodes"})
_PACKAGES = ("agridistill", "torch", "torchvision", "timm", "lightning", "numpy", "Pillow")


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """All settings, resolved."""
        return self.path / "recipe.toml"

    @property
    def splits(self) -> Path:
        """Which photo was for training, validation and test."""
        return self.path / "splits.json"

    @property
    def environment(self) -> Path:
        """Versions, hardware, seed and data fingerprint."""
        return self.path / "environment.json"

    @property
    def weights(self) -> Path:
        """The best epoch's weights."""
        return self.path / "model.safetensors"

    @property
    def manifest(self) -> Path:
        """The model's contract; written when training is done."""
        return self.path / MANIFEST_NAME

    @property
    def checkpoint(self) -> Path:
        """State of the last epoch, for a resume only."""
        return self.path / "last.ckpt"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.path / ".lock"

    @property
    def learnt(self) -> Path:
        """Which photos it has learnt from, without their names; see `data.likeness`."""
        return self.path / LEARNT_NAME

    @property
    def caches(self) -> Path:
        """What this run's model said about other runs' views, as a teacher."""
        return self.path / "cache"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    @property
    def evaluation(self) -> Path:
        """The last file of a run: where it stands, the run is finished."""
        return self.path / "evaluation.json"

    def require_startable(self, *, resume: bool) -> None:
        """Checks that a run may start here, before anything is computed.

        Raises:
            RunError: finished, unfinished without `resume`, nothing to resume, or a folder of something else.
        """
        if self.evaluation.exists():
            raise RunError("a new run folder", f"'{self.path}', which holds a finished run", "choose another --out")
        if self.path.exists() and not self.path.is_dir():
            raise RunError("a run folder", f"the file '{self.path}'", "choose another --out")
        started = self.recipe.exists()
        if resume and not started:
            raise RunError("an unfinished run to resume", f"none in '{self.path}'", "start it without --resume")
        if started and not resume:
            raise RunError(
                "a new run folder",
                f"'{self.path}', which holds an unfinished run",
                "continue it with --resume or choose another --out",
            )
        if not started and self.path.exists() and not self._is_as_new():
            raise RunError("a new or empty folder", f"'{self.path}', which holds other files", "choose another --out")

    def _is_as_new(self) -> bool:
        """Empty, or with what a start left that came to no recipe: killed, or on a full disk."""
        names = {path.name for path in self.path.iterdir() if path.suffix != ".part"} - {self.lock.name}
        # A split alone may be the user's.
        return not names or (names <= {self.environment.name, self.splits.name} and self.environment.name in names)

    def write_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Writes the resolved settings."""
        write_text(self.recipe, tomli_w.dumps(without_none(asdict(config))))

    def require_same_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Checks that a resume goes on with the settings that the run started with.

        Raises:
            RunError: names the first setting that differs.
        """
        try:
            stored = _flatten(tomllib.loads(self.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError("the recipe of the run", f"a damaged '{self.recipe}' ({error})", "start a new run") from None
        wanted = _flatten(without_none(asdict(config)))
        # What a version has added has its default in the runs of earlier ones.
        defaults = _flatten(without_none(asdict(type(config)())))
        stored = {key: value for key, value in defaults.items() if key in wanted} | stored
        for key in sorted(stored.keys() | wanted.keys()):
            if key.rsplit(".", 1)[-1] not in MAY_DIFFER and stored.get(key) != wanted.get(key):
                raise RunError(
                    f"{key} = {stored.get(key)} as in the run that is resumed",
                    str(wanted.get(key)),
                    "leave the option away or start a new run",
                )

    def fine_tuning(self) -> dict[str, Any]:
        """The settings of a run that was fine-tuned from weights; empty of any other, or where no recipe says so."""
        try:
            recipe = tomllib.loads(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        fit = recipe.get("train", recipe.get("distill", {}))
        if not (fit.get("freeze_norm") is True or fit.get("head_first") is True):
            return {}
        keys = ("lr", "layer_decay", "head_first", "freeze_norm", "precision")
        return {key: fit[key] for key in keys if key in fit}

    def require_same_teacher(self, sha256: str | None) -> None:
        """Checks that a resume goes on under the teacher that the run started with.

        Raises:
            RunError: another teacher.
        """
        before = self.read_environment().get("teacher_sha256")
        if before != sha256:
            raise RunError(
                f"the teacher that the run started with ({str(before)[:12]}…)",
                f"{str(sha256)[:12]}…",
                "pass that teacher or start a new run",
            )

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The state of the last epoch; None where the run was stopped before its first one ended.

        Raises:
            RunError: the file is damaged.
        """
        if not self.checkpoint.exists():
            return None
        try:
            # A checkpoint from elsewhere is data, not code.
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch raises RuntimeError, UnpicklingError, EOFError, … for one fact.
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise RunError(
                "a whole checkpoint", f"a damaged '{self.checkpoint}' ({reason})", "start a new run"
            ) from None
        return state

    def write_environment(self, *, seed: int, data_root: Path, fingerprint: str, extra: Mapping[str, Any]) -> None:
        """Writes what the result depends on beside the recipe."""
        document = {
            "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "hardware": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            },
            "seed": seed,
            "data": str(data_root.resolve()),
            "data_fingerprint": fingerprint,
            **extra,
        }
        write_json(self.environment, document)

    def read_environment(self) -> dict[str, Any]:
        """The environment document; empty where there is none."""
        try:
            document = json.loads(self.environment.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                "the environment of a run", f"a damaged '{self.environment}' ({error})", "start a new run"
            ) from None
        return document if isinstance(document, dict) else {}

    def read_layout(self) -> Layout:
        """How the labels of the run's photos were found.

        Raises:
            RunError: a damaged environment.
        """
        return Layout.from_json(self.read_environment().get("layout"))


def run_of(weights: Path) -> RunFolder | None:
    """The run that weights are from: its folder, or its own weights file; None where they are of no run."""
    run = RunFolder(weights if weights.is_dir() else weights.parent)
    return run if run.recipe.exists() and weights in (run.path, run.weights) else None


def without_none(value: Any) -> Any:
    """The same nested value without None entries, which TOML cannot say."""
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
