from __future__ import annotations

import itertools
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agridistill.data import drawn_leaves
from agridistill.data.drawn_leaves import CLASSES, draw_leaf, draw_leaves

NAME = re.compile(r"(?P<uuid>[0-9a-f-]{36})___SYN_[A-Z]+ Leaf (?P<leaf>\d+)\.(?P<shot>\d+)\.jpg")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def pixels(class_name: str, leaf: int = 0, shot: int = 0, size: int = 64) -> NDArray[np.float64]:
    photo = draw_leaf(class_name, np.random.default_rng(leaf), np.random.default_rng(1000 + shot), size)
    return np.asarray(photo, np.float64)


def greenness(photo: NDArray[np.float64]) -> NDArray[np.float64]:
    return photo[..., 1] - (photo[..., 0] + photo[..., 2]) / 2


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_leaves(tmp_path_factory.mktemp("drawn") / "leaves", leaves_per_class=3, shots_per_leaf=2, image_size=48)


def test_every_class_gets_its_folder_with_all_shots_of_all_leaves(drawn: Path) -> None:
    assert sorted(folder.name for folder in drawn.iterdir()) == sorted(CLASSES)
    assert len(CLASSES) == 6
    for folder in drawn.iterdir():
        matches = [NAME.fullmatch(path.name) for path in folder.iterdir()]
        found = sorted((int(match["leaf"]), int(match["shot"])) for match in matches if match)
        assert found == [(leaf, shot) for leaf in (1, 2, 3) for shot in (1, 2)]
        for path in folder.iterdir():
            with Image.open(path) as photo:
                assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (48, 48))


def test_names_are_unique_and_start_with_a_uuid(drawn: Path) -> None:
    names = [path.name for path in drawn.rglob("*.jpg")]
    identities = {uuid.UUID(name[:36]) for name in names}
    assert len(identities) == len(names) == 36


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    again = draw_leaves(tmp_path / "again", leaves_per_class=3, shots_per_leaf=2, image_size=48)
    assert contents(again) == contents(drawn)


def test_another_seed_draws_other_leaves(drawn: Path, tmp_path: Path) -> None:
    other = draw_leaves(tmp_path / "other", leaves_per_class=1, shots_per_leaf=1, image_size=48, seed=1)
    assert not set(contents(other).values()) & set(contents(drawn).values())


def test_a_photo_does_not_depend_on_how_many_are_drawn(drawn: Path, tmp_path: Path) -> None:
    fewer = contents(draw_leaves(tmp_path / "fewer", leaves_per_class=2, shots_per_leaf=1, image_size=48))
    assert len(fewer) == 12
    assert fewer.items() < contents(drawn).items()


@pytest.mark.parametrize("class_name", CLASSES)
def test_shots_of_one_leaf_differ_and_show_the_same_leaf(class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With the leaf held still, light, background and camera still vary, but what is green where must agree.
    pose = drawn_leaves._Pose(angle=0.0, scale=1.0, squeeze=1.0, shift=(0.0, 0.0))
    monkeypatch.setattr(drawn_leaves._Pose, "random", lambda rng: pose)
    shots = {leaf: [pixels(class_name, leaf, shot) for shot in range(3)] for leaf in (1, 2)}
    for first, second in itertools.combinations(shots[1], 2):
        assert np.abs(first - second).mean() > 5

    def likeness(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        return float(np.corrcoef(greenness(first).ravel(), greenness(second).ravel())[0, 1])

    same = [likeness(first, second) for first, second in itertools.combinations(shots[1], 2)]
    other = [likeness(first, second) for first, second in itertools.product(shots[1], shots[2])]
    assert min(same) > max(other)


def test_shots_of_one_leaf_turn_and_move_it() -> None:
    centres = []
    for shot in range(6):
        green = np.maximum(greenness(pixels("healthy", 3, shot)) - 12, 0)
        rows, columns = np.mgrid[: len(green), : len(green)]
        centres.append((np.average(rows, weights=green), np.average(columns, weights=green)))
    assert np.std(centres, axis=0).min() > 0.5


@pytest.mark.parametrize("class_name", ["round_spots", "ringed_lesions", "edge_blotches", "mosaic"])
@pytest.mark.parametrize("leaf", range(3))
def test_a_disease_is_visible_on_the_leaf_and_only_there(class_name: str, leaf: int) -> None:
    # The same generators grow the same leaf and take the same photo, so the difference is the disease.
    healthy, ill = pixels("healthy", leaf), pixels(class_name, leaf)
    change = np.abs(ill - healthy).max(axis=-1)
    assert (change > 25).mean() > 0.01
    assert (change > 25).mean() < 0.6
    assert np.concatenate([change[:3, :3].ravel(), change[-3:, -3:].ravel()]).max() < 3


def test_curled_leaves_are_yellower_and_narrower_than_healthy_ones() -> None:
    def measured(class_name: str) -> tuple[float, float]:
        photos = np.stack([pixels(class_name, leaf, shot=leaf) for leaf in range(24)])
        on_leaf = greenness(photos) > 10
        return float(np.mean(photos[on_leaf][:, 0] / photos[on_leaf][:, 1])), float(on_leaf.mean())

    (healthy_redness, healthy_area), (curled_redness, curled_area) = measured("healthy"), measured("yellow_curl")
    assert curled_redness > healthy_redness + 0.1
    assert curled_area < 0.9 * healthy_area


def test_mean_colour_does_not_give_the_class_away(tmp_path: Path) -> None:
    folder = draw_leaves(tmp_path / "leaves", leaves_per_class=20, shots_per_leaf=2, image_size=32)
    colours, labels, leaves = [], [], []
    for path in sorted(folder.rglob("*.jpg")):
        match = NAME.fullmatch(path.name)
        assert match
        with Image.open(path) as photo:
            colours.append(np.asarray(photo).reshape(-1, 3).mean(axis=0))
        labels.append(path.parent.name)
        leaves.append(f"{path.parent.name}/{match['leaf']}")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    accuracies = cross_val_score(classifier, np.stack(colours), labels, groups=leaves, cv=GroupKFold(5))
    assert accuracies.mean() < 0.6


def test_progress_counts_photos_leaf_by_leaf(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    draw_leaves(
        tmp_path / "leaves",
        leaves_per_class=1,
        shots_per_leaf=2,
        image_size=32,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 12) for done in range(2, 13, 2)]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    assert draw_leaves(out, leaves_per_class=1, shots_per_leaf=1, image_size=32) == out
    assert len(list(out.rglob("*.jpg"))) == 6


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(OSError, match="mine"):
        draw_leaves(tmp_path / "mine", leaves_per_class=1, shots_per_leaf=1, image_size=32)
    assert contents(tmp_path) == {"mine/notes.txt": b"keep"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_behind_when_drawing_stops(tmp_path: Path, failure: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise failure

    with pytest.raises(type(failure)):
        draw_leaves(tmp_path / "leaves", leaves_per_class=1, image_size=32, progress=stop)
    assert list(tmp_path.iterdir()) == []
