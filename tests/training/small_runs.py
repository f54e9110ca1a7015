"""Settings of runs that take seconds, and what they write."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tests.conftest import TINY_STUDENT

from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings

FIT = FitSettings(model=TINY_STUDENT, epochs=1, batch_size=16, pretrained=False, workers=0)
DATA = DataSettings(image_size=64)


def student(method: str = "hybrid", **objective: Any) -> DistillConfig:
    return DistillConfig(data=DATA, distill=FIT, objective=ObjectiveSettings(method=method, **objective))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
