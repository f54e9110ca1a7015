"""AgriDistill: a large vision model's knowledge, in a model that fits a field device.

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
    from agridistill.api import evaluate, load
    from agridistill.benchmarking import benchmark
    from agridistill.exporting.artefact import export
    from agridistill.training.run import distill, train

__all__ = ["benchmark", "distill", "evaluate", "export", "load", "train"]

_HOMES = {
    "train": "agridistill.training.run",
    "distill": "agridistill.training.run",
    "evaluate": "agridistill.api",
    "export": "agridistill.exporting.artefact",
    "load": "agridistill.api",
    "benchmark": "agridistill.benchmarking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agridistill' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
