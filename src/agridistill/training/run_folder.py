"""A run folder: its files, the rules for starting and resuming a run, and the result of a finished one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
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
from agridistill.data.split import read_split
from agridistill.errors import AgriDistillError, RunError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.storage import write_json, write_text
from agridistill.training.settings import DistillConfig, TrainConfig
from agridistill.version import __version__

# Settings that a resume may change: they do not change what a run learns.
MAY_DIFFER = frozenset({"keep_views", "workers", "devices", "nodes"})
_PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "Pillow")


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    out: Path  # the run folder
    evaluation: EvaluationResult  # on the test split
    best_epoch: int  # whose weights were kept, counted from 1
    train_s: float  # seconds in training epochs
    skipped: tuple[tuple[str, str], ...]  # unreadable photos that were left out, with the reason


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
        write_text(self.recipe, _as_toml(config))

    def require_same_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Checks that a resume has the settings of the run.

        Raises:
            RunError: names the first setting that differs.
        """
        stored, current = _by_key(self.read_recipe()), _by_key(tomllib.loads(_as_toml(config)))
        for section, key in sorted(stored.keys() | current.keys()):
            before, now = stored.get((section, key)), current.get((section, key))
            if key not in MAY_DIFFER and before != now:
                expected = f"{section}.{key} = {before} as in the run that is resumed"
                raise RunError(expected, str(now), "leave the option away or start a new run")

    def read_recipe(self) -> dict[str, Any]:
        """The sections of the recipe.

        Raises:
            RunError: no recipe, or a damaged one.
        """
        try:
            return tomllib.loads(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError("the recipe of a run", f"a damaged '{self.recipe}' ({error})", "start a new run") from None

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
        versions: dict[str, str | None] = {"agridistill": __version__, "python": platform.python_version()}
        versions |= {name: _version(name) for name in _PACKAGES}
        write_json(self.environment, {"versions": versions, "hardware": hardware, **document})

    def read_environment(self) -> dict[str, Any]:
        """The environment document.

        Raises:
            RunError: no such file, or a damaged one.
        """
        try:
            return dict(json.loads(self.environment.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            got = f"a damaged '{self.environment}' ({error})"
            raise RunError("the environment of a run", got, "start a new run") from None

    def read_layout(self) -> Layout:
        """How the labels of the run's photos were found; errors as `read_environment`."""
        return Layout.from_json(self.read_environment()["layout"])

    def read_result(self) -> RunResult:
        """The result of a finished run.

        Raises:
            RunError: a damaged file.
        """
        skipped = tuple((path, reason) for path, reason in self.read_environment()["skipped"])
        try:
            document = json.loads(self.evaluation.read_text(encoding="utf-8"))
            evaluation = EvaluationResult.from_json(document)
            return RunResult(self.path, evaluation, document["best_epoch"], document["train_s"], skipped)
        except (KeyError, OSError, RunError, TypeError, ValueError) as error:
            reason = error.got if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            raise RunError(
                "the whole result of a finished run",
                f"a damaged '{self.evaluation}' ({reason})",
                "restore the file, or start a new run; the model itself can be used",
            ) from None

    def test_photos(self) -> tuple[str, tuple[str, ...]]:
        """The fingerprint of the run's data, and the paths of its test split."""
        return self.read_environment()["data_fingerprint"], read_split(self.splits).test


def teacher_evaluation(student: Path, teacher: Path) -> EvaluationResult | None:
    """The teacher's evaluation, where the student learnt from a teacher and both have the same test photos."""
    teacher_run, student_run = RunFolder(teacher), RunFolder(student)
    try:
        if "teacher_sha256" not in read_manifest(student_run.manifest).lineage:
            return None
        same_photos = teacher_run.test_photos() == student_run.test_photos()
        return teacher_run.read_result().evaluation if same_photos else None
    except (KeyError, AgriDistillError):
        return None  # nothing to compare with


def run_of(weights: Path) -> RunFolder | None:
    """The run of weights: its folder, or its own weights file; None where they are of no run."""
    run = RunFolder(weights if weights.is_dir() else weights.parent)
    return run if run.recipe.exists() and weights in (run.path, run.weights) else None


def _as_toml(config: TrainConfig | DistillConfig) -> str:
    """The sections of a recipe, without settings that are None, which TOML cannot express."""
    sections = asdict(config).items()
    return tomli_w.dumps(
        {name: {key: value for key, value in content.items() if value is not None} for name, content in sections}
    )


def _by_key(recipe: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(section, key): value for section, content in recipe.items() for key, value in content.items()}


def _version(package: str) -> str | None:
    """None where a fork with another name stands in, such as Pillow-SIMD."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
