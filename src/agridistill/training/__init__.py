"""From a data folder to a finished run folder: `run.train` and `run.distill`, and the settings of both.

`run` checks and prepares, `parts` builds network, teacher and objective, `fit` trains them, `result` evaluates.
"""

from agridistill.training.settings import (
    DataSettings,
    DistillConfig,
    FitSettings,
    ObjectiveSettings,
    PairSettings,
    TrainConfig,
)

__all__ = ["DataSettings", "DistillConfig", "FitSettings", "ObjectiveSettings", "PairSettings", "TrainConfig"]
