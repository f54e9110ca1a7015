"""A student that goes on learning as its int8 artefact will compute."""

from __future__ import annotations

from torch import nn

from agridistill.data.prepare import PreparedData
from agridistill.errors import ConfigError
from agridistill.evaluation.representative import representative_batches
from agridistill.manifest import Preprocessing
from agridistill.models.quantised import calibrate, quantised
from agridistill.training.settings import ObjectiveSettings
from agridistill.training.teachers import weights_of


def as_int8(
    network: nn.Module,
    prepared: PreparedData,
    preprocessing: Preprocessing,
    objective: ObjectiveSettings,
    *,
    calibrated: bool,
) -> nn.Module:
    """A copy with folded batch norm and rounded weights and activations, ready to be trained on.

    Args:
        network: a trained student.
        prepared: whose training photos the ranges of the activations are fitted to.
        preprocessing: of the network's input.
        objective: what it is trained on with.
        calibrated: a checkpoint is about to bring the ranges along.

    Raises:
        ConfigError: an objective with attention: the stages of the student are no longer there to be tapped.
        ModelError: a network that cannot be rounded.
    """
    if weights_of(objective)["w_att"]:
        raise ConfigError("a method without attention for int8", f"'{objective.method}'", "pass --method kd")
    rounded = quantised(network)
    if not calibrated:
        calibrate(rounded, representative_batches(prepared.root, prepared.train, preprocessing))
    return rounded
