"""A leaf is in training or in the test, never in both: also where tools have made copies of its photo."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.check import check
from agridistill.data.drawn_leaves import draw_leaf
from agridistill.data.folder import Sample
from agridistill.data.leaf_ids import sibling_groups
from agridistill.data.prepare import prepare_data

Turn = Callable[[Image.Image], Image.Image]

_TURN = Image.Transpose
EIGHT_TURNS = [None, *_TURN]
CLASSES = ("mosaic", "round_spots")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen drawn leaves of each of two classes, a photo of each: mosaic/IMG_0.jpg to round_spots/IMG_29.jpg."""
    root = tmp_path_factory.mktemp("originals")
    for number in range(30):
        name = CLASSES[number // 15]
        photo = draw_leaf(name, np.random.default_rng(number), np.random.default_rng(100 + number), 64)
        (root / name).mkdir(exist_ok=True)
        photo.save(root / name / f"IMG_{number}.jpg", quality=90)
    return root


def _made(originals: Path, root: Path, copies: Sequence[tuple[str, Turn]]) -> dict[str, str]:
    """Writes copies of every original under names with {stem} and the like; gives the original of each path."""
    source = {}
    for number, path in enumerate(sorted(originals.rglob("*.jpg"))):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy, (name, turn) in enumerate(copies):
            key = 10 * number + copy
            made = f"{path.parent.name}/" + name.format(
                stem=path.stem, number=number, digits=1000 + 7 * key, hash=f"{key:032x}", uuid=uuid.UUID(int=key)
            )
            with Image.open(path) as image:
                turn(image.convert("RGB")).save(root / made, quality=75)
            source[made] = path.stem
    return source


def _torn(root: Path, source: dict[str, str]) -> tuple[int, int]:
    """Test photos whose original has a copy in training, and all test photos."""
    data = prepare_data(root)
    learnt = {source[sample.path] for sample in data.train}
    return sum(source[sample.path] in learnt for sample in data.test), len(data.test)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _flipped(image: Image.Image) -> Image.Image:
    return image.transpose(_TURN.FLIP_LEFT_RIGHT)


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((image.width * 3 // 4, image.height * 3 // 4))


def _tilted(degrees: int) -> Turn:
    return lambda image: image.rotate(degrees)


def test_flipped_and_turned_siblings_stay_with_their_leaf(originals: Path, tmp_path: Path) -> None:
    copies: list[tuple[str, Turn]] = [
        ("{stem}.jpg", _as_it_is),
        ("{stem}_flip.jpg", _flipped),
        ("{stem}_rot90.jpg", lambda image: image.transpose(_TURN.ROTATE_90)),
        ("{stem}_rot15.jpg", _tilted(15)),
    ]
    torn, photos = _torn(tmp_path, _made(originals, tmp_path, copies))
    assert photos >= 12
    assert torn == 0


def test_copies_without_telling_names_stay_with_their_leaf(originals: Path, tmp_path: Path) -> None:
    copies: list[tuple[str, Turn]] = [
        ("a{number:03}.jpg", _as_it_is),
        ("m{number:03}.png", _flipped),
        ("t{number:03}.jpg", lambda image: _scaled(image.transpose(_TURN.ROTATE_270))),
        ("s{number:03}.jpg", lambda image: image.transpose(_TURN.TRANSVERSE)),
    ]
    torn, photos = _torn(tmp_path, _made(originals, tmp_path, copies))
    assert photos >= 12
    assert torn == 0


@pytest.mark.parametrize(
    "names",
    [
        ["{stem}_jpg.rf.{hash}.jpg"] * 3,
        ["r_original_{stem}.jpg_{uuid}.jpg"] * 3,
        ["{stem}.jpg"] + ["{stem}_0_{digits}.jpg"] * 3,
        ["aug_{number}_{digits}.jpg"] * 3,
        ["{stem}_aug_0.jpg", "{stem}_aug_1.jpg"],
        ["{stem}.jpg", "augmented_3_{stem}.jpg"],
        ["{stem}_new30degFlipLR.jpg", "{stem}_rot_15.jpg"],
        ["é{stem}.jpg", "e\u0301{stem}_rot15.jpg", "e\u0301{stem}_rot30.jpg"],
        ["{stem}.jpg", "{stem}_GaussNoise1.jpg", "{stem}_augmented_image_2.jpg", "{stem}-旋转3.jpg"],
        ["{stem}.jpg", "{stem}_rotation_15_degrees.jpg", "{stem}_rotated_by_15.jpg", "{stem}_rotleft.jpg"],
    ],
    ids=lambda names: names[-1],
)
def test_names_of_augmentation_tools_keep_siblings_in_one_part(
    originals: Path, tmp_path: Path, names: list[str]
) -> None:
    source = _made(originals, tmp_path, [(name, _tilted(11 * place)) for place, name in enumerate(names)])
    torn, photos = _torn(tmp_path, source)
    assert photos >= 6
    assert torn == 0
    assert check(tmp_path).without_original == ()


def test_counters_of_cameras_group_nothing(originals: Path, tmp_path: Path) -> None:
    names = ["IMG_{n}", "IMG_{n}_2", "leaf_12 ({n})", "IMG_20230501_1203{n}", "field2_crop_{n}", "2023_aug_{n}"]
    for number, path in enumerate(sorted(originals.rglob("*.jpg"))):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name / f"{names[number % 6].format(n=10 + number)}.jpg")
    result = check(tmp_path)
    assert [one.leaves for one in result.classes] == [15, 15]
    assert result.problems == ()


def test_many_photos_named_after_one_are_of_a_plot_and_not_of_a_leaf() -> None:
    """Beside a photo `field1` 60 others `field1_a…` are no copies of it; `field2_a` to `field2_c` may be."""
    samples = [Sample(f"rust/{name}.jpg", 0, "") for name in ("field1", "field2")]
    samples += [Sample(f"rust/field1_a{number}.jpg", 0, "") for number in range(60)]
    samples += [Sample(f"rust/field2_{letter}.jpg", 0, "") for letter in "abc"]
    assert [len(group) for group in sibling_groups(samples)] == [4]


@pytest.mark.parametrize("turn", EIGHT_TURNS, ids=lambda turn: "upright" if turn is None else turn.name.lower())
def test_a_scaled_and_turned_copy_under_another_label_is_a_problem(
    originals: Path, tmp_path: Path, turn: Image.Transpose | None
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(originals, root)
    with Image.open(root / "mosaic" / "IMG_3.jpg") as image:
        made = _scaled(image) if turn is None else _scaled(image.transpose(turn))
        made.save(root / "round_spots" / "holiday.jpg", quality=60)
    result = check(root)
    assert result.conflicting_copies == (("mosaic/IMG_3.jpg", "round_spots/holiday.jpg"),)
    assert result.near_duplicates == result.conflicting_copies
    assert result.problems == (
        "1 group of copies of one photo (also flipped, turned or scaled) in several classes, "
        "the first 'mosaic/IMG_3.jpg' and 'round_spots/holiday.jpg'",
    )
    parts = prepare_data(root).split.parts().values()
    assert sum("mosaic/IMG_3.jpg" in part and "round_spots/holiday.jpg" in part for part in parts) == 1


def test_an_augmented_copy_in_another_given_folder_is_a_leaf_in_two_splits(originals: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(originals.rglob("*.jpg"))):
        folder = tmp_path / ("train", "val", "test", "train")[number % 4] / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    assert check(tmp_path).problems == ()
    photo = next((tmp_path / "train" / "mosaic").glob("*.jpg"))
    with Image.open(photo) as image:
        image.rotate(15).save(tmp_path / "test" / "mosaic" / f"{photo.stem}_rot15.jpg")
    result = check(tmp_path)
    assert [one.splits for one in result.straddling_leaves] == [("train", "test")]
    assert "1 leaf in several splits" in result.problems[0]


def test_augmented_photos_of_unknown_originals_are_a_problem(
    originals: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(originals, root)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        with Image.open(path) as image:
            # One photo after the other through `flow`: each is its number 0.
            image.rotate(11).save(path.with_name(f"aug_0_{1000 + number}.jpg"))
    with Image.open(root / "mosaic" / "IMG_3.jpg") as image:
        _flipped(image).save(root / "mosaic" / "aug_0_77.jpg")
    result = check(root)
    assert len(result.without_original) == 30
    assert "mosaic/aug_0_77.jpg" not in result.without_original
    assert "originals of 30 photos made by an augmentation tool are unknown" in result.problems[0]
    prepare_data(root)
    assert "originals of 30 photos made by an augmentation tool are unknown" in caplog.text
