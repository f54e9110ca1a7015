"""One photo under several labels: a warning, and above a share a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.drawn_leaves import draw_leaf
from agridistill.data.prepare import split_data
from agridistill.errors import DataError


def _copies(root: Path, count: int) -> None:
    for number in range(count):
        shutil.copy(root / "rust" / f"{number:02}.png", root / "scab" / f"wrong{number}.png")


def test_a_few_identical_files_under_two_labels_are_a_warning(
    tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 1)
    split_data(root, tmp_path / "s.json")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 41 photos have copies under other labels (also flipped, turned, scaled or saved again), the first "
        "'rust/00.png' and 'scab/wrong0.png': see all with agridistill data check"
    ]


@pytest.mark.parametrize("turn", [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90])
def test_copies_that_were_scaled_flipped_or_turned_count(
    tmp_path: Path, turn: Image.Transpose | None, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    for number in range(12):
        name = ("healthy", "rust")[number % 2]
        (root / name).mkdir(parents=True, exist_ok=True)
        leaf = np.random.default_rng(number)
        draw_leaf("ringed_lesions", leaf, leaf, 128).save(root / name / f"{number}.png")
    with Image.open(root / "healthy" / "0.png") as photo:
        copy = photo.transpose(turn) if turn is not None else photo
        copy.resize((96, 96)).save(root / "rust" / "other.jpg", quality=80)
    split_data(root, tmp_path / "s.json", conflicts=1)
    (message,) = caplog.messages
    assert message.startswith("2 of 13 photos have copies under other labels")
    assert "'healthy/0.png' and 'rust/other.jpg'" in message


def test_many_identical_files_under_two_labels_are_refused(
    tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 10)
    with pytest.raises(DataError) as raised:
        split_data(root, tmp_path / "s.json")
    assert str(raised.value) == (
        f"expected each photo under one label, or at most 5% of them under several; got '{root}', in which 20 of 50 "
        "photos have copies under other labels (also flipped, turned, scaled or saved again), the first 'rust/00.png' "
        "and 'scab/wrong0.png'; "
        f"remove the wrong copies ('agridistill data check {root} --json' names all), "
        "or pass --conflicts SHARE if they are meant"
    )
    assert not (tmp_path / "s.json").exists()
    split_data(root, tmp_path / "s.json", conflicts=0.4)
    assert "20 of 50 photos" in caplog.text


def test_copies_within_a_class_are_no_conflict(tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 10, "scab": 10})
    for number in range(8):
        shutil.copy(root / "rust" / f"{number:02}.png", root / "rust" / f"again{number}.png")
    split_data(root, tmp_path / "s.json")
    assert caplog.text == ""


def test_one_folder_linked_as_two_classes_is_refused(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 10, "scab": 10})
    (root / "mould").symlink_to(root / "rust")
    with pytest.raises(DataError, match="20 of 30 photos have copies under other labels"):
        split_data(root, tmp_path / "s.json")


def test_training_refuses_them_too_unless_they_are_meant(
    tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from agridistill.training.run import distill, train
    from agridistill.training.settings import DataSettings, DistillConfig, ObjectiveSettings, TrainConfig

    class StartedError(Exception):
        pass

    def started(*args: object) -> None:
        raise StartedError

    monkeypatch.setattr("agridistill.training.run.Session", started)
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 10)
    with pytest.raises(DataError, match="or pass --set conflicts=SHARE if they are meant"):
        train(root, tmp_path / "run", TrainConfig())
    with pytest.raises(DataError, match="20 of 50 photos have copies under other labels"):
        distill(root, None, tmp_path / "run", DistillConfig(objective=ObjectiveSettings(method="ce")))
    with pytest.raises(StartedError):
        train(root, tmp_path / "run", TrainConfig(data=DataSettings(conflicts=0.5)))
    assert "20 of 50 photos" in caplog.text
