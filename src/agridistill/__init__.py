"""AgriDistill trains a small model from a large vision model, so that it runs on a device in the field.

Example::

    import agridistill

    agridistill.train("photos", out="run", epochs=3, image_size=96)
    answer = agridistill.load("run").predict("leaf.jpg")

The names below are imported when they are first used: `import agridistill` needs neither torch nor timm.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agridistill.errors import (
    AgriDistillError,
    ConfigError,
    DataError,
    MissingExtraError,
    ModelError,
    PhotoError,
    RunError,
    needs_extra,
)
from agridistill.version import __version__ as __version__

# Some builds of ONNX Runtime send usage data unless this is set before they are loaded. A value that the user has set
# is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from agridistill.api import evaluate, export, load
    from agridistill.benchmark.result import BenchmarkResult
    from agridistill.benchmark.run import BenchmarkPlan, benchmark
    from agridistill.data.views import Augmentation
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.proof import ProofResult
    from agridistill.export.artefact import ExportResult
    from agridistill.report import report
    from agridistill.report.page import ReportResult
    from agridistill.runs import compare, distill, train
    from agridistill.runtime.explanation import Explanation
    from agridistill.runtime.predictor import PhotoResult, Predictor
    from agridistill.runtime.verdict import Prediction
    from agridistill.training.run_folder import RunResult
    from agridistill.training.settings import (
        DataSettings,
        DistillConfig,
        FitSettings,
        ObjectiveSettings,
        PairSettings,
        TrainConfig,
    )

__all__ = [
    "AgriDistillError",
    "Augmentation",
    "BenchmarkPlan",
    "BenchmarkResult",
    "ConfigError",
    "DataError",
    "DataSettings",
    "DistillConfig",
    "EvaluationResult",
    "Explanation",
    "ExportResult",
    "FitSettings",
    "MissingExtraError",
    "ModelError",
    "ObjectiveSettings",
    "PairSettings",
    "PhotoError",
    "PhotoResult",
    "Prediction",
    "Predictor",
    "ProofResult",
    "ReportResult",
    "RunError",
    "RunResult",
    "TrainConfig",
    "__version__",
    "benchmark",
    "compare",
    "distill",
    "evaluate",
    "export",
    "load",
    "report",
    "train",
]

_HOMES = {
    name: f"agridistill.{module}"
    for module, names in {
        "api": "evaluate export load",
        "benchmark.result": "BenchmarkResult",
        "benchmark.run": "BenchmarkPlan benchmark",
        "data.views": "Augmentation",
        "evaluation.evaluate": "EvaluationResult",
        "evaluation.proof": "ProofResult",
        "export.artefact": "ExportResult",
        "report": "report",
        "report.page": "ReportResult",
        "runs": "compare distill train",
        "runtime.explanation": "Explanation",
        "runtime.predictor": "PhotoResult Predictor",
        "runtime.verdict": "Prediction",
        "training.run_folder": "RunResult",
        "training.settings": "DataSettings DistillConfig FitSettings ObjectiveSettings PairSettings TrainConfig",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agridistill' has no attribute '{name}'")
    return _imported(name)


# Result types that need an extra, with a module of it: if it is not installed, `help` and completion omit the type.
_NEEDS = {
    "EvaluationResult": "sklearn",
    "ExportResult": "torch",
    "ProofResult": "sklearn",
    "ReportResult": "jinja2",
    "RunResult": "torch",
}


def __dir__() -> list[str]:
    return sorted(name for name in __all__ if name not in _NEEDS or find_spec(_NEEDS[name]) is not None)


def _imported(name: str) -> Any:
    extra = "report" if _HOMES[name].startswith("agridistill.report") else "train"
    with needs_extra(f"the libraries of agridistill.{name}", extra):
        return getattr(importlib.import_module(_HOMES[name]), name)


class _FunctionOfPackage:
    """Keeps `agridistill.NAME` a function even after Python has imported the subpackage of the same name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        return _imported(self._name)

    def __set__(self, instance: object, value: object) -> None:
        """Ignores the subpackage that the import system assigns here; it stays available in `sys.modules`."""


class _Package(ModuleType):
    benchmark = _FunctionOfPackage("benchmark")
    export = _FunctionOfPackage("export")
    report = _FunctionOfPackage("report")


sys.modules[__name__].__class__ = _Package
