"""AgriDistill: a large vision model's knowledge, in a model that fits a field device.

Example::

    import agridistill

    agridistill.train("photos", out="run", epochs=3, image_size=96)
    answer = agridistill.load("run").predict("leaf.jpg")

The names below are imported when they are first used: `import agridistill` needs neither torch nor timm.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from agridistill.version import __version__ as __version__

# Some builds of ONNX Runtime report to its maker, and keep an id of the machine, unless this stands in the environment
# before it is loaded; its own switch comes too late. What is set there already is somebody's choice.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from agridistill.api import evaluate, export, load
    from agridistill.benchmarking import benchmark
    from agridistill.data.views import Augmentation
    from agridistill.errors import (
        AgriDistillError,
        ConfigError,
        DataError,
        MissingExtraError,
        ModelError,
        PhotoError,
        RunError,
    )
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.exporting.artefact import ExportResult
    from agridistill.report import write_report as report
    from agridistill.report.page import ReportResult
    from agridistill.runs import compare, distill, train
    from agridistill.runtime.benchmark import BenchmarkPlan
    from agridistill.runtime.benchmark_result import BenchmarkResult
    from agridistill.runtime.explanation import Explanation
    from agridistill.runtime.predictor import PhotoResult, Prediction, Predictor
    from agridistill.training.result import RunResult
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

_NAMES_OF = {
    "agridistill.api": ("evaluate", "export", "load"),
    "agridistill.benchmarking": ("benchmark",),
    "agridistill.data.views": ("Augmentation",),
    "agridistill.errors": (
        "AgriDistillError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "ModelError",
        "PhotoError",
        "RunError",
    ),
    "agridistill.evaluation.evaluate": ("EvaluationResult",),
    "agridistill.exporting.artefact": ("ExportResult",),
    "agridistill.report.page": ("ReportResult",),
    "agridistill.runs": ("compare", "distill", "train"),
    "agridistill.runtime.benchmark": ("BenchmarkPlan",),
    "agridistill.runtime.benchmark_result": ("BenchmarkResult",),
    "agridistill.runtime.explanation": ("Explanation",),
    "agridistill.runtime.predictor": ("PhotoResult", "Prediction", "Predictor"),
    "agridistill.training.result": ("RunResult",),
    "agridistill.training.settings": (
        "DataSettings",
        "DistillConfig",
        "FitSettings",
        "ObjectiveSettings",
        "PairSettings",
        "TrainConfig",
    ),
}
_HOMES = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "report":
        # A package that can be called, see there.
        return importlib.import_module("agridistill.report")
    if name not in _HOMES:
        raise AttributeError(f"module 'agridistill' has no attribute '{name}'")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        from agridistill.errors import MissingExtraError

        extra = "report" if _HOMES[name].startswith("agridistill.report") else "train"
        needed, got = f"the libraries of agridistill.{name}", f"no module '{error.name}'"
        raise MissingExtraError(needed, got, f"pip install 'agridistill[{extra}]'") from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
