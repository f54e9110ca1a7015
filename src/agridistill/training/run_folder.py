"""The folder of a run: its files, the checks for starting and resuming it, and the result of a finished run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from agridistill.data.labels import Layout
from agridistill.data.likeness import LEARNT_NAME
from agridistill.data.split import read_split
from agridistill.errors import AgriDistillError, RunError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.host import processor_name, versions_of
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.storage import write_json, write_text
from agridistill.training.settings import DistillConfig, TrainConfig
from agridistill.version import __version__

# Settings that a resume may change, because they do not change the result.
MAY_DIFFER = frozenset({"keep_views", "workers", "devices", "nodes"})
# The keys of environment.json that other code reads.
ENVIRONMENT_KEYS = ("data", "data_fingerprint", "layout", "normalisation", "skipped", "start", "teacher_sha256")
_PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "Pillow")


@dataclass(frozen=True)
class RunResult:
    """What `train` and `distill` return: the run folder, the result on the test split, and figures of the training."""

    out: Path  # the run folder
    evaluation: EvaluationResult  # evaluation on the test split
    best_epoch: int  # the epoch whose weights were kept, counted from 1
    train_s: float  # duration of all training epochs in seconds
    skipped: tuple[tuple[str, str], ...]  # (path, reason) of each unreadable photo that was left out


class RunFolder:
    """A run folder: the paths of its files as attributes, and methods to check, write and read them.

    A method that reads raises a RunError if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"  # all settings, resolved
        self.splits = path / "splits.json"  # the photos of training, validation and test
        self.environment = path / "environment.json"  # versions, hardware, seed and data fingerprint
        self.weights = path / "model.safetensors"  # weights of the best epoch
        self.manifest = path / MANIFEST_NAME  # describes the model; written after the training
        self.checkpoint = path / "last.ckpt"  # state after an epoch, for a resume only
        self.lock = path / ".lock"  # held by the process that trains
        self.learnt = path / LEARNT_NAME  # hashes of the photos that the model learnt from; see `data.likeness`
        self.caches = path / "cache"  # outputs of this model as a teacher of other runs
        self.metrics = path / "metrics.csv"  # one row for each epoch
        self.evaluation = path / "evaluation.json"  # the last file of a run: it marks the run as finished

    def require_startable(self, *, resume: bool) -> None:
        """Raises a RunError unless a new run may start in this folder, or with `resume` it holds an unfinished run."""
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
        # A run that was killed at its start leaves these files; a split without an environment may be the user's.
        names = {path.name for path in self.path.iterdir() if path.suffix != ".part"} - {self.lock.name}
        begun = self.environment.name in names and names <= {self.environment.name, self.splits.name}
        if names and not begun:
            raise RunError("a new or empty folder", f"'{self.path}', which holds other files", another)

    def write_recipe(self, config: TrainConfig | DistillConfig) -> None:
        """Writes all settings of the run, defaults included, to `recipe.toml`."""
        write_text(self.recipe, _as_toml(config))

    def require_same_recipe(self, config: TrainConfig | DistillConfig, *, but: str = "") -> None:
        """Raises a RunError if a setting differs from those of the run, except those in `MAY_DIFFER` and `but`."""
        stored, current = _by_key(self.read_recipe()), _by_key(tomllib.loads(_as_toml(config)))
        for section, key in sorted(stored.keys() | current.keys()):
            before, now = stored.get((section, key)), current.get((section, key))
            if key not in (*MAY_DIFFER, but) and before != now:
                expected = f"{section}.{key} = {before} as in the run that is resumed"
                raise RunError(expected, str(now), "leave the option out or start a new run")

    def read_recipe(self) -> dict[str, Any]:
        """Reads `recipe.toml`: a dict of settings for each section."""
        with _damage("recipe", self.recipe):
            return tomllib.loads(self.recipe.read_text(encoding="utf-8"))

    def require_same_teacher(self, sha256: str | None) -> None:
        """Raises a RunError if a resumed run has teacher weights with another sha256 (None: no teacher)."""
        before = self.read_environment()["teacher_sha256"]
        if before != sha256:
            names = [f"weights with sha256 {one[:12]}…" if one else "no teacher" for one in (before, sha256)]
            raise RunError(
                f"the teacher that the run started with ({names[0]})", names[1], "pass that teacher or start a new run"
            )

    def require_same_features(self, features: str | None) -> None:
        """Raises a RunError if the teacher's features had another source ("cache" or "network") at the start."""
        # Earlier versions cached no features.
        before = self.read_environment().get("teacher_features", "network")
        if features is not None and before != features:
            expected = f"features from the teacher's {before}, as in the run that is resumed"
            got = f"features from the teacher's {features}"
            raise RunError(expected, got, "pass --no-cache" if before == "network" else "leave --no-cache out")

    def require_same_data(self, data: Path, fingerprint: str) -> None:
        """Raises a RunError if the photos and labels of a resumed run have another fingerprint."""
        if self.read_environment()["data_fingerprint"] != fingerprint:
            raise RunError("the data that the run started with", f"other photos in '{data}'", "start a new run")

    def read_unlabelled(self) -> tuple[str, ...]:
        """Returns the sorted paths of the run's photos without labels, relative to their folder; () without any."""
        with _damage("split", self.splits):
            return tuple(map(str, json.loads(self.splits.read_text(encoding="utf-8")).get("unlabelled", ())))

    def require_same_unlabelled(self, fingerprint: str | None) -> None:
        """Raises a RunError if the photos without labels of a resumed run (None: none) have another fingerprint."""
        stored = self.read_environment().get("unlabelled")  # absent in runs of earlier versions
        if (stored["fingerprint"] if stored else None) != fingerprint:
            expected = f"{stored['photos']} from '{stored['folder']}'" if stored else "none"
            raise RunError(
                f"the photos without labels that the run started with ({expected})",
                "others" if fingerprint else "none",
                f"{'pass them as' if stored else 'leave out'} --unlabelled, or start a new run",
            )

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Reads Lightning's checkpoint of the last epoch that was saved; returns None if there is none."""
        if not self.checkpoint.exists():
            return None
        try:
            # Read only data, because a checkpoint from an unknown source may contain code.
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch raises RuntimeError, UnpicklingError, EOFError, … for the same damage.
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise RunError(
                "a complete checkpoint", f"a damaged '{self.checkpoint}' ({reason})", "start a new run"
            ) from None
        return state

    def write_environment(self, document: Mapping[str, Any]) -> None:
        """Writes `environment.json`: versions of packages, hardware, and the entries of `document`."""
        hardware = {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        versions = {"agridistill": __version__, "python": platform.python_version(), **versions_of(_PACKAGES)}
        write_json(self.environment, {"versions": versions, "hardware": hardware, **document})

    def read_environment(self) -> dict[str, Any]:
        """Reads the content of `environment.json`."""
        with _damage("environment", self.environment):
            document = dict(json.loads(self.environment.read_text(encoding="utf-8")))
            missing = next((key for key in ENVIRONMENT_KEYS if key not in document), None)
            if missing is not None:
                raise ValueError(f"no '{missing}' in it")
        return document

    def read_layout(self) -> Layout:
        """Reads where the labels of the run's photos came from."""
        return Layout.from_json(self.read_environment()["layout"])

    def read_result(self) -> RunResult:
        """Reads the result of a finished run from `evaluation.json` and `environment.json`."""
        skipped = tuple((path, reason) for path, reason in self.read_environment()["skipped"])
        try:
            document = json.loads(self.evaluation.read_text(encoding="utf-8"))
            evaluation = EvaluationResult.from_json(document)
            return RunResult(self.path, evaluation, document["best_epoch"], document["train_s"], skipped)
        except (KeyError, OSError, RunError, TypeError, ValueError) as error:
            reason = error.got if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            raise RunError(
                "the complete result of a finished run",
                f"a missing or damaged '{self.evaluation}' ({reason})",
                "restore the file, or start a new run; the model of this run can still be used",
            ) from None

    def epochs_done(self) -> int:
        """Returns the number of epochs that `metrics.csv` has; 0 without the file."""
        return max(0, self.metrics.read_text(encoding="utf-8").count("\n") - 1) if self.metrics.exists() else 0

    def test_photos(self) -> tuple[str, tuple[str, ...]]:
        """Returns the fingerprint of the run's data folder, and the paths in it of the test photos."""
        return self.read_environment()["data_fingerprint"], read_split(self.splits).test


def teacher_evaluation(student: Path, teacher: Path) -> EvaluationResult | None:
    """Returns the teacher's test result if the student had a teacher and both have the same test photos, else None."""
    teacher_run, student_run = RunFolder(teacher), RunFolder(student)
    try:
        if "teacher_sha256" not in read_manifest(student_run.manifest).lineage:
            return None
        same_photos = teacher_run.test_photos() == student_run.test_photos()
        return teacher_run.read_result().evaluation if same_photos else None
    except (KeyError, AgriDistillError):
        return None  # nothing to compare with


def run_of(weights: Path) -> RunFolder | None:
    """Returns the run to which `weights`, a run folder or the weights file in it, belongs; None for other paths."""
    run = RunFolder(weights if weights.is_dir() else weights.parent)
    return run if run.recipe.exists() and weights in (run.path, run.weights) else None


@contextlib.contextmanager
def _damage(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise RunError(f"the {what} of a run", f"a missing or damaged '{path}' ({error})", "start a new run") from None


def _as_toml(config: TrainConfig | DistillConfig) -> str:
    """Returns the settings as TOML; settings that are None are left out, because TOML cannot express them."""
    sections = asdict(config).items()
    return tomli_w.dumps(
        {name: {key: value for key, value in content.items() if value is not None} for name, content in sections}
    )


def _by_key(recipe: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(section, key): value for section, content in recipe.items() for key, value in content.items()}
