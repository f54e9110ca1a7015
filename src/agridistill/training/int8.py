"""A student that goes on learning as its int8 artefact will compute."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from agridistill.data.prepare import PreparedData
from agridistill.errors import ConfigError
from agridistill.evaluation.representative import representative_batches
from agridistill.manifest import MANIFEST_NAME, Preprocessing, read_manifest
from agridistill.models.int8 import calibrate, quantised
from agridistill.training.settings import ObjectiveSettings
from agridistill.training.terms import weights_of


def as_int8(
    network: nn.Module,
    prepared: PreparedData,
    preprocessing: Preprocessing,
    objective: ObjectiveSettings,
    *,
    weights: Path | None,
) -> nn.Module:
    """A copy with folded batch norm and rounded weights and activations, ready to be trained on.

    Args:
        network: a trained student.
        prepared: whose training photos the ranges of the activations are fitted to.
        preprocessing: of the network's input.
        objective: what it is trained on with.
        weights: where the student's weights are from; None where a checkpoint is about to bring them and the ranges.

    Raises:
        ConfigError: an objective with attention or hints: the student's stages are no longer there to be tapped; or
            photos of another size than the student learnt.
        ModelError: a network that cannot be rounded.
    """
    if weights_of(objective)["w_att"] or weights_of(objective)["w_hint"]:
        raise ConfigError("a method of labels and logits alone for int8", f"'{objective.method}'", "pass --method kd")
    if weights is not None and (weights / MANIFEST_NAME).exists():
        learnt = read_manifest(weights / MANIFEST_NAME).preprocessing.image_size
        if learnt != preprocessing.image_size:
            raise ConfigError(
                f"the image size that '{weights}' learnt",
                f"{preprocessing.image_size} px instead of {learnt}",
                f"pass --image-size {learnt}",
            )
    rounded = quantised(network, preprocessing)
    if weights is not None:
        calibrate(rounded, representative_batches(prepared.root, prepared.train, preprocessing))
    return rounded
