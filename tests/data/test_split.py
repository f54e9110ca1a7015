from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.folder import Sample, scan
from agridistill.data.inspection import inspect_photos
from agridistill.data.leaf_ids import assign_leaf_ids
from agridistill.data.split import (
    Split,
    labelled_share,
    make_split,
    match_split,
    read_split,
    unnamed_photos,
    write_split,
)
from agridistill.errors import DataError

UUID = "1a69b38b-c4eb-42c4-9584-bcb14fb8db0c___"


def _samples(*class_leaf_sizes: list[int]) -> list[Sample]:
    """One argument a class: how many photos each of its leaves has."""
    return [
        Sample(f"c{label}/{leaf:03}_{photo:03}.jpg", label, f"c{label}:{leaf}")
        for label, sizes in enumerate(class_leaf_sizes)
        for leaf, size in enumerate(sizes)
        for photo in range(size)
    ]


def _counts(split: Split, samples: list[Sample]) -> dict[str, Counter[int]]:
    label = {sample.path: sample.label for sample in samples}
    return {name: Counter(label[path] for path in paths) for name, paths in split.parts().items()}


def _random_samples(seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return _samples(*(rng.integers(1, 9, rng.integers(3, 60)).tolist() for _ in range(5)))


@pytest.mark.parametrize("seed", range(5))
def test_every_photo_is_in_one_part_and_no_leaf_in_two(seed: int) -> None:
    samples = _random_samples(seed)
    split = make_split(samples, seed=seed)
    assert sorted(split.train + split.val + split.test) == sorted(sample.path for sample in samples)
    part_of = {path: name for name, paths in split.parts().items() for path in paths}
    leaves = {(sample.leaf_id, part_of[sample.path]) for sample in samples}
    assert len(leaves) == len({sample.leaf_id for sample in samples})


def test_each_class_comes_near_its_fractions() -> None:
    samples = _samples([4] * 100, [3, 5] * 30, [2] * 40)
    counts = _counts(make_split(samples, val_fraction=0.2, test_fraction=0.1), samples)
    totals = Counter(sample.label for sample in samples)
    for name, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        for label, total in totals.items():
            assert abs(counts[name][label] / total - fraction) <= 0.02


def test_four_huge_leaf_groups_still_fill_all_parts() -> None:
    samples = _samples([24, 24, 95, 141], [4] * 50)
    counts = _counts(make_split(samples), samples)
    assert [counts[name][0] for name in ("train", "val", "test")] == [236, 24, 24]


@pytest.mark.parametrize("seed", range(10))
def test_three_leaves_fill_three_parts(seed: int) -> None:
    samples = _samples([1, 1, 50], [5] * 30)
    counts = _counts(make_split(samples, seed=seed), samples)
    assert counts["train"][0] == 50
    assert counts["val"][0] == counts["test"][0] == 1


def test_two_leaves_fill_train_and_test_and_one_leaf_train() -> None:
    samples = _samples([5, 50], [7], [4] * 20)
    counts = _counts(make_split(samples), samples)
    assert [counts[name][0] for name in ("train", "val", "test")] == [50, 0, 5]
    assert [counts[name][1] for name in ("train", "val", "test")] == [7, 0, 0]


def test_a_class_stays_in_train_also_where_train_is_the_smallest_part() -> None:
    samples = _samples([6], [3, 3, 3], [4] * 20)
    counts = _counts(make_split(samples, val_fraction=0.45, test_fraction=0.45), samples)
    assert all(counts["train"][label] for label in range(3))


def test_a_leaf_of_two_classes_stays_together_and_no_class_loses_a_part() -> None:
    samples = _samples([2] * 10, [2] * 3)
    # One file stands under both labels.
    samples += [Sample("c0/both.jpg", 0, "c1:0")]
    split = make_split(samples)
    part_of = {path: name for name, paths in split.parts().items() for path in paths}
    assert part_of["c0/both.jpg"] == part_of["c1/000_000.jpg"]
    counts = _counts(split, samples)
    assert all(counts[name][label] for name in counts for label in range(2))


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    samples = _random_samples(0)
    shuffled = [samples[index] for index in np.random.default_rng(1).permutation(len(samples))]
    assert make_split(samples, seed=3) == make_split(shuffled, seed=3)
    assert make_split(samples, seed=3) != make_split(samples, seed=4)


def test_ten_thousand_leaves_are_split_in_seconds() -> None:
    samples = _samples(*([1] * 1000 for _ in range(10)))
    counts = _counts(make_split(samples), samples)
    assert {counts["train"][label] for label in range(10)} == {700}


def test_a_part_with_fraction_zero_stays_empty() -> None:
    split = make_split(_samples([2] * 20, [2] * 20), test_fraction=0)
    assert split.test == ()
    assert split.val


def test_too_few_leaves_are_an_error() -> None:
    with pytest.raises(DataError, match="got 2, of which none is left for val; add photos of other leaves"):
        make_split(_samples([30], [30]))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [((-0.1, 0.1), "-0.1 and 0.1"), ((0.1, 1.0), "0.1 and 1.0"), ((0.5, 0.5), "a sum below 1; got 0.5 and 0.5")],
)
def test_impossible_fractions_are_an_error(fractions: tuple[float, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_split(_samples([2] * 9), val_fraction=fractions[0], test_fraction=fractions[1])


def test_near_duplicates_of_a_class_are_one_leaf(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 3, "scab": 3})
    with Image.open(tmp_path / "rust" / "00.png") as image:
        image.resize((120, 120)).save(tmp_path / "rust" / "again.jpg")
    leaves = _leaves(tmp_path)
    assert leaves["rust/00.png"] == leaves["rust/again.jpg"] == "rust/00.png"
    assert len(set(leaves.values())) == 6


def test_identical_files_are_one_leaf_also_across_classes_and_names(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 3, "scab": 3})
    content = (tmp_path / "rust" / "00.png").read_bytes()
    (tmp_path / "scab" / f"{UUID}RS_HL 0007.png").write_bytes(content)
    (tmp_path / "rust" / f"{UUID}RS_HL 0900.png").write_bytes(content)
    leaves = _leaves(tmp_path)
    group = {leaves[path] for path in ("rust/00.png", f"scab/{UUID}RS_HL 0007.png", f"rust/{UUID}RS_HL 0900.png")}
    assert group == {"rust:rs_hl 0900"}


def test_named_leaves_that_look_alike_stay_apart(tmp_path: Path, write_photo, write_pose) -> None:
    for number in (10, 500):
        write_pose(tmp_path / "rust" / f"{UUID}RS_HL {number}.png", number)
    write_photo(tmp_path / "scab" / "x.png", 2)
    assert len(set(_leaves(tmp_path).values())) == 3


def _leaves(root: Path) -> dict[str, str]:
    folder = scan(root)
    return {sample.path: sample.leaf_id for sample in assign_leaf_ids(folder, folder.samples, inspect_photos(folder))}


def _written(path: Path, split: Split) -> Path:
    write_split(path, split, seed=1, val_fraction=0.2, test_fraction=0.1, fingerprint="ab")
    return path


def test_a_split_survives_its_file(tmp_path: Path) -> None:
    split = make_split(_random_samples(2))
    path = _written(tmp_path / "splits.json", split)
    assert read_split(path) == split
    raw = json.loads(path.read_text())
    assert (raw["format_version"], raw["seed"], raw["data_fingerprint"]) == (1, 1, "ab")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a split file in JSON format"),
        ("[]", "format None"),
        ('{"format_version": 2}', "format 2"),
        ('{"format_version": 1, "splits": {"train": []}}', "lists of paths for train, val and test"),
        (
            '{"format_version": 1, "splits": {"train": [1], "val": [], "test": []}}',
            "lists of paths for train, val and test",
        ),
        ('{"format_version": 1, "splits": {"train": ["a"], "val": [], "test": ["a"]}}', "'a' in train and in test"),
        ('{"format_version": 1, "splits": {"train": ["a", "a"], "val": [], "test": []}}', "'a' in train and in train"),
    ],
)
def test_a_damaged_split_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(DataError) as raised:
        read_split(tmp_path / "splits.json")
    assert message in str(raised.value)
    assert "agridistill data split" in str(raised.value)


def test_a_missing_split_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file '.*none.json'"):
        read_split(tmp_path / "none.json")


def test_a_split_of_other_data_is_an_error() -> None:
    split = Split(("c0/000_000.jpg", "c9/gone.jpg"), ("c9/also.jpg",), ())
    with pytest.raises(DataError, match=r"2 of its 3 photos do not exist, the first 'c9/also.jpg'"):
        match_split(split, _samples([2]))


def test_photos_that_the_split_does_not_name_are_left_out_and_reported() -> None:
    split, samples = Split(("c0/000_000.jpg",), (), ("c0/001_000.jpg",)), _samples([1, 1, 1])
    part_of = match_split(split, samples)
    assert part_of == {"c0/000_000.jpg": "train", "c0/001_000.jpg": "test"}
    assert unnamed_photos(samples, part_of) == [
        "left out: 1 photo that the split file does not name, the first 'c0/002_000.jpg'"
    ]
    assert unnamed_photos(samples[:2], part_of) == []


@pytest.mark.slow
def test_real_photos_are_split_by_leaves(real_photos: Path) -> None:
    folder = scan(real_photos)
    samples = assign_leaf_ids(folder, folder.samples, inspect_photos(folder))
    counts = _counts(make_split(samples), list(samples))
    for label in range(len(folder.classes)):
        assert all(counts[name][label] for name in counts)


class TestLabelledShare:
    samples = _samples([5] * 20, [1] * 7)

    def test_each_class_gives_its_share_rounded_up_and_never_none(self) -> None:
        kept = {share: Counter(s.label for s in labelled_share(self.samples, share)) for share in (1.0, 0.25, 0.01)}
        assert kept == {1.0: {0: 100, 1: 7}, 0.25: {0: 25, 1: 2}, 0.01: {0: 1, 1: 1}}

    def test_a_smaller_share_is_part_of_a_larger_one(self) -> None:
        shares = [set(labelled_share(self.samples, share, seed=3)) for share in (0.05, 0.1, 0.5, 1.0)]
        assert shares[0] < shares[1] < shares[2] < shares[3]

    def test_the_drawing_depends_on_the_seed_and_not_on_the_order(self) -> None:
        forwards, backwards = labelled_share(self.samples, 0.3), labelled_share(self.samples[::-1], 0.3)
        assert forwards == backwards[::-1]
        assert set(forwards) != set(labelled_share(self.samples, 0.3, seed=1))

    def test_photos_are_drawn_from_many_leaves(self) -> None:
        assert len({sample.leaf_id for sample in labelled_share(self.samples, 0.2) if sample.label == 0}) > 10
