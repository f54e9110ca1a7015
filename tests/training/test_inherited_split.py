"""A run is tested on no photo that its teacher or its weights learnt from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import TINY_STUDENT
from tests.training.small_runs import DATA, FIT, student

from agridistill.data.prepare import prepare_data
from agridistill.data.split import Split, read_split, write_split
from agridistill.models import create_model, save_weights
from agridistill.training import fit as fit_module
from agridistill.training.run import distill, inherit_split, train
from agridistill.training.run_folder import ENVIRONMENT_KEYS, RunFolder
from agridistill.training.settings import DataSettings, TrainConfig


def test_a_student_is_tested_on_no_photo_that_its_teacher_learnt(
    leaves: Path, teacher_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other_seed = replace(student(), data=replace(DATA, split_seed=9))
    distill(leaves, teacher_run, tmp_path / "run", other_seed)
    assert read_split(tmp_path / "run" / "splits.json") == read_split(teacher_run / "splits.json")
    mine = json.loads((teacher_run / "splits.json").read_text())
    parts = mine["splits"]
    parts["train"], parts["test"] = parts["test"] + parts["train"][20:], parts["train"][:20]
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    distill(leaves, teacher_run, tmp_path / "leaky", student(), split_file=tmp_path / "mine.json")
    assert "the teacher was trained on 20 of the 20 test photos" in caplog.text


def test_a_run_is_tested_on_no_photo_that_its_weights_learnt(
    leaves: Path, student_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(replace(DATA, split_seed=9), train=replace(FIT, weights=str(student_run)))
    train(leaves, tmp_path / "run", config)
    assert read_split(tmp_path / "run" / "splits.json") == read_split(student_run / "splits.json")
    of_file = replace(config, train=replace(FIT, weights=str(student_run / "model.safetensors")))
    train(leaves, tmp_path / "of-file", of_file)
    assert read_split(tmp_path / "of-file" / "splits.json") == read_split(student_run / "splits.json")
    assert caplog.messages == []
    mine = json.loads((student_run / "splits.json").read_text())
    parts = mine["splits"]
    parts["train"], parts["test"] = parts["test"] + parts["train"][20:], parts["train"][:20]
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    train(leaves, tmp_path / "leaky", config, split_file=tmp_path / "mine.json")
    assert "the run of --weights was trained on 20 of the 20 test photos" in caplog.text


@pytest.fixture
def prepared_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are prepared and started, and not trained."""
    monkeypatch.setattr(fit_module, "train_parts", lambda *args: None)


@pytest.mark.usefixtures("prepared_alone")
class TestSplitsOfEarlierRuns:
    def test_other_photos_of_the_same_names_keep_their_leaves_together(self, leaves: Path, tmp_path: Path) -> None:
        """As a new season's photos, which a camera numbers from 1 on again."""
        for name in sorted(path.name for path in leaves.iterdir() if path.is_dir()):
            for number, photo in enumerate(sorted((leaves / name).iterdir())):
                # The new ones: two exposures of each leaf.
                for folder, numbers in (("old", (number,)), ("new", (2 * number, 2 * number + 1))):
                    for taken in numbers:
                        target = tmp_path / folder / name / f"{taken:04}.jpg"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(photo, target)
        train(tmp_path / "old", tmp_path / "first", TrainConfig(DATA, train=FIT))
        weights = tmp_path / "first" / "model.safetensors"
        save_weights(create_model(TINY_STUDENT, 6), weights)
        train(tmp_path / "new", tmp_path / "second", TrainConfig(DATA, train=replace(FIT, weights=str(weights))))
        part_of = {
            path: name
            for name, paths in read_split(tmp_path / "second" / "splits.json").parts().items()
            for path in paths
        }
        assert [part_of[path] for path in sorted(part_of)][::2] == [part_of[path] for path in sorted(part_of)][1::2]

    def test_a_test_folder_stays_the_test(self, leaves: Path, student_run: Path, tmp_path: Path) -> None:
        earlier = read_split(student_run / "splits.json")
        for part, paths in earlier.parts().items():
            for path in paths:
                target = tmp_path / "parted" / part / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(leaves / path, target)
        train(tmp_path / "parted", tmp_path / "first", TrainConfig(DATA, train=FIT))
        moved = earlier.train[0]
        (tmp_path / "parted" / "train" / moved).rename(tmp_path / "parted" / "test" / moved)
        weights = tmp_path / "first" / "model.safetensors"
        save_weights(create_model(TINY_STUDENT, 6), weights)
        train(tmp_path / "parted", tmp_path / "second", TrainConfig(DATA, train=replace(FIT, weights=str(weights))))
        assert f"test/{moved}" in read_split(tmp_path / "second" / "splits.json").test

    def test_the_same_share_of_labels_stays_the_same(self, leaves: Path, tmp_path: Path) -> None:
        few = replace(DATA, labels=0.4)
        train(leaves, tmp_path / "first", TrainConfig(few, train=FIT))
        weights = tmp_path / "first" / "model.safetensors"
        save_weights(create_model(TINY_STUDENT, 6), weights)
        train(leaves, tmp_path / "second", TrainConfig(few, train=replace(FIT, weights=str(weights))))
        assert read_split(tmp_path / "second" / "splits.json") == read_split(tmp_path / "first" / "splits.json")

    def test_a_file_of_no_run_has_no_split(self, leaves: Path, student_run: Path, tmp_path: Path) -> None:
        """Whatever lies beside it."""
        shutil.copy(student_run / "model.safetensors", tmp_path / "some.safetensors")
        for name in ("splits.json", "manifest.json", "recipe.toml"):
            (tmp_path / name).write_text("not ours")
        config = TrainConfig(DATA, train=replace(FIT, weights=str(tmp_path / "some.safetensors")))
        train(leaves, tmp_path / "run", config)
        assert read_split(tmp_path / "run" / "splits.json") == read_split(student_run / "splits.json")

    def test_what_the_teacher_learnt_is_reported_of_the_split_that_is_used_in_the_end(
        self, leaves: Path, teacher_run: Path, student_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Here that of the weights: the teacher learnt the same photos elsewhere, among them the whole test."""
        teacher = Path(shutil.copytree(teacher_run, tmp_path / "teacher"))
        split = read_split(student_run / "splits.json")
        elsewhere = [[f"train/{path}" for path in paths] for paths in (split.test, split.val, split.train)]
        document = json.loads((teacher / "splits.json").read_text())
        document["splits"] = dict(zip(("train", "val", "test"), elsewhere, strict=True))
        (teacher / "splits.json").write_text(json.dumps(document))
        environment = json.loads((teacher / "environment.json").read_text())
        (teacher / "environment.json").write_text(json.dumps({**environment, "data_fingerprint": "0" * 64}))
        config = replace(
            student("kd"), data=replace(DATA, split_seed=9), distill=replace(FIT, weights=str(student_run))
        )
        distill(leaves, teacher, tmp_path / "run", config)
        assert read_split(tmp_path / "run" / "splits.json") == split
        count = len(split.test)
        assert f"the teacher was trained on {count} of the {count} test photos" in caplog.text

    def test_a_few_of_the_earlier_photos_are_split_again_and_reported(
        self, leaves: Path, student_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for path in read_split(student_run / "splits.json").train:
            target = tmp_path / "learnt" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(leaves / path, target)
        train(tmp_path / "learnt", tmp_path / "run", TrainConfig(DATA, train=replace(FIT, weights=str(student_run))))
        test = len(read_split(tmp_path / "run" / "splits.json").test)
        assert f"the run of --weights was trained on {test} of the {test} test photos" in caplog.text


def test_a_split_that_was_given_has_no_seed(leaves: Path, student_run: Path, tmp_path: Path) -> None:
    made = json.loads((student_run / "splits.json").read_text())
    assert (made["seed"], made["val_fraction"]) == (0, 0.15)
    train(leaves, tmp_path / "run", TrainConfig(DATA, train=FIT), split_file=student_run / "splits.json")
    given = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert (given["seed"], given["val_fraction"], given["test_fraction"]) == (None, None, None)
    assert given["splits"] == made["splits"]


def test_a_photo_more_or_less_leaks_nothing_of_the_teachers_training(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(leaves, tmp_path / "data")
    photo = next((tmp_path / "data" / "mosaic").glob("*.jpg"))
    photo.rename(photo.with_name("renamed.jpg"))
    distill(tmp_path / "data", teacher_run, tmp_path / "run", replace(student(), data=replace(DATA, split_seed=3)))
    mine, teachers = read_split(tmp_path / "run" / "splits.json"), read_split(teacher_run / "splits.json")
    assert not set(mine.test) & set(teachers.train)
    assert not set(mine.val) & set(teachers.train)
    assert any("renamed.jpg" in path for part in mine.parts().values() for path in part)


def _renamed(leaves: Path, out: Path, known: int) -> Path:
    """The same photos under names of their own, but for the first ones of each class."""
    for folder in sorted(path for path in leaves.iterdir() if path.is_dir()):
        (out / folder.name).mkdir(parents=True)
        for number, photo in enumerate(sorted(folder.glob("*.jpg"))):
            name = photo.name if number < known else f"other_{photo.name}"
            shutil.copy(photo, out / folder.name / name)
    return out


def test_other_photos_that_share_a_few_names_keep_a_split_of_their_own(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    other = _renamed(leaves, tmp_path / "other", known=1)
    distill(other, teacher_run, tmp_path / "run", student())
    split = read_split(tmp_path / "run" / "splits.json")
    assert min(len(split.val), len(split.test)) >= 6


def test_the_same_photos_in_split_folders_are_reported_where_the_teacher_learnt_them(
    leaves: Path, teacher_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teachers = read_split(teacher_run / "splits.json")
    parts = {"test": teachers.train[:20], "val": teachers.val, "train": (*teachers.train[20:], *teachers.test)}
    for part, paths in parts.items():
        for path in paths:
            target = tmp_path / "moved" / part / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(leaves / path, target)
    distill(tmp_path / "moved", teacher_run, tmp_path / "run", student())
    assert "the teacher was trained on 20 of the 20 test photos" in caplog.text


def _photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def test_a_teachers_split_with_torn_leaves_stays_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    for number in range(8):
        folder = photos / ("rust", "scab")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        _photo(number).save(folder / f"{number}.png")
    _photo(0).transpose(Image.Transpose.ROTATE_90).save(photos / "rust" / "again.png")
    prepared = prepare_data(photos)
    split = Split(
        ("rust/0.png", "rust/2.png", "scab/1.png", "scab/3.png"),
        ("rust/4.png", "scab/5.png"),
        ("rust/6.png", "rust/again.png", "scab/7.png"),
    )
    run.mkdir()
    write_split(run / "splits.json", split, seed=0, val_fraction=0.2, test_fraction=0.3, fingerprint="")
    (run / "environment.json").write_text(
        json.dumps({**dict.fromkeys(ENVIRONMENT_KEYS), "data_fingerprint": prepared.fingerprint})
    )
    found = inherit_split({"the teacher": RunFolder(run)}, prepared, DataSettings())
    assert found.split == split
    assert "photos of one leaf in several parts (such leaves: 1; their test photos: 1 of 3)" in caplog.text
