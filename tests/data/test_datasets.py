from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from agridistill.data.datasets import leaves_of, read_leaf_map
from agridistill.data.folder import Sample
from agridistill.errors import DataError

CLASSES = ("Tomato___Late_blight", "Tomato___healthy")
UUID = "1a69b38b-c4eb-42c4-9584-bcb14fb8db0c___"


def _samples(*names: str, label: int = 0) -> list[Sample]:
    return [Sample(f"{CLASSES[label]}/{name}", label, "") for name in names]


def _groups(samples: list[Sample], leaf_map: dict[str, tuple[str, ...]] | None = None) -> set[frozenset[str]]:
    """The leaf groups as sets of bare names."""
    found = defaultdict(set)
    for path, leaf in leaves_of(samples, CLASSES, leaf_map).items():
        found[leaf].add(Path(path).stem.removeprefix(UUID))
    return {frozenset(group) for group in found.values()}


def test_neighbouring_shots_are_one_leaf_and_far_ones_are_not() -> None:
    samples = _samples(*(f"{UUID}RS_Late.B {number}.jpg" for number in (4892, 4893, 4901, 4910)))
    assert _groups(samples) == {
        frozenset({"RS_Late.B 4892", "RS_Late.B 4893", "RS_Late.B 4901"}),
        frozenset({"RS_Late.B 4910"}),
    }


def test_the_same_number_in_another_series_or_class_is_another_leaf() -> None:
    samples = _samples(f"{UUID}RS_Late.B 12.jpg", f"{UUID}RS_HL 12.jpg") + _samples(f"{UUID}RS_HL 12.jpg", label=1)
    assert len(set(leaves_of(samples, CLASSES, None).values())) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("GHLB Leaf 2 Day 12", "GHLB Leaf 2 Day 1", "GHLB Leaf 2.5 Day 13"),
        ("GH_HL Leaf 166.1", "GH_HL Leaf 166.2", "GH_HL Leaf 166"),
        ("GHLB_PS leaf 28.1 Day", "GHLB_PS Leaf 28 day 13", "GHLB Leaf 28 Day 9"),
        ("GHLB2ES Leaf 69", "GHLB2ES Leaf 69.3", "GHLB2 Leaf 69.1"),
        ("RS_HL 5531", "RS_HL 5531 1", "RS_HL 5531 copy", "RS_HL 5531_flipLR", "rs_hl 5531 (2)"),
    ],
)
def test_all_photos_of_a_named_leaf_belong_together(names: tuple[str, ...]) -> None:
    assert len(_groups(_samples(*(f"{UUID}{name}.jpg" for name in names)))) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("GH_HL Leaf 166", "GH_HL Leaf 167"),
        ("GHLB Leaf 2 Day 12", "GHLB Leaf 12 Day 2"),
        ("GHLB Leaf 2", "GHLB2 Leaf 2"),
        ("SYN_RUST Leaf 1000.1", "SYN_RUST Leaf 1001.1"),
    ],
)
def test_leaves_with_other_numbers_are_other_leaves(first: str, second: str) -> None:
    assert len(_groups(_samples(f"{UUID}{first}.jpg", f"{UUID}{second}.jpg"))) == 2


def test_a_camera_number_behind_the_word_leaf_is_a_shot() -> None:
    samples = _samples(*(f"{UUID}UF.GRC_BS_Lab Leaf {number}.jpg" for number in ("0279", "0281", "0409")))
    assert _groups(samples) == {
        frozenset({"UF.GRC_BS_Lab Leaf 0279", "UF.GRC_BS_Lab Leaf 0281"}),
        frozenset({"UF.GRC_BS_Lab Leaf 0409"}),
    }


@pytest.mark.parametrize("name", [f"{UUID}2700323949_95aa2eaa01_o.jpg", "IMG 0001.jpg", "IMG_0001.jpg", "leaf 3.jpg"])
def test_names_that_say_nothing_are_absent(name: str) -> None:
    assert leaves_of(_samples(name), CLASSES, None) == {}


def test_a_known_series_is_understood_without_its_uuid() -> None:
    assert len(_groups(_samples("RS_Late.B 4892.JPG", f"{UUID}RS_Late.B 4893.jpg", "GHLB_PS Leaf 3.png"))) == 2


def test_the_leaf_map_parts_shots_that_names_would_join() -> None:
    samples = _samples(*(f"{UUID}RS_Late.B {number}.jpg" for number in (4894, 4895, 4897, 4898)))
    leaf_map = {f"rs_late.b {number}": (f"{CLASSES[0]}:::12.0",) for number in (4894, 4895)}
    leaf_map |= {f"rs_late.b {number}": (f"{CLASSES[0]}:::13.0",) for number in (4897, 4898)}
    found = leaves_of(samples, CLASSES, leaf_map)
    assert set(found.values()) == {f"{CLASSES[0]}:::12.0", f"{CLASSES[0]}:::13.0"}
    assert len(_groups(samples, leaf_map)) == 2


def test_a_shot_that_the_leaf_map_lacks_may_be_of_both_neighbours() -> None:
    samples = _samples(*(f"{UUID}RS_Late.B {number}.jpg" for number in (4895, 4896, 4897)))
    leaf_map = {"rs_late.b 4895": (f"{CLASSES[0]}:::12.0",), "rs_late.b 4897": (f"{CLASSES[0]}:::13.0",)}
    assert len(_groups(samples, leaf_map)) == 1


def test_an_entry_of_another_class_in_the_leaf_map_is_left_out() -> None:
    samples = _samples(f"{UUID}RS_HL 0003.jpg", f"{UUID}RS_HL 0100.jpg", label=1)
    leaf_map = {
        "rs_hl 0003": ("Soybean___healthy:::5.0", f"{CLASSES[1]}:::1.0"),
        "rs_hl 0100": ("Soybean___healthy:::5.0",),
    }
    found = leaves_of(samples, CLASSES, leaf_map)
    assert sorted(found.values()) == [f"{CLASSES[1]}:::1.0", f"{CLASSES[1]}:rs_hl 0100"]


def test_leaf_ids_do_not_depend_on_the_order_of_the_samples() -> None:
    samples = _samples(*(f"{UUID}RS_Late.B {number}.jpg" for number in range(10, 60, 7)), f"{UUID}GHLB Leaf 3.2.jpg")
    assert leaves_of(samples, CLASSES, None) == leaves_of(samples[::-1], CLASSES, None)


@pytest.mark.parametrize("where", [".", "raw/color"])
def test_the_leaf_map_is_found_in_the_folder_or_beside_it(tmp_path: Path, where: str) -> None:
    root = tmp_path / "data" / where
    root.mkdir(parents=True)
    home = root if where == "." else root.parent
    (home / "leaf-map.json").write_text(json.dumps({"RS_HL 0003 ": ["a:::1.0"]}))
    assert read_leaf_map(root) == {"rs_hl 0003": ("a:::1.0",)}


def test_without_a_leaf_map_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert read_leaf_map(tmp_path / "data") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a leaf map in JSON format"),
        ("[]", 'expected a JSON object {"name": ["id"]}; got something else'),
        ('{"rs_hl 3": [1]}', "a list of leaf ids for 'rs_hl 3'"),
        ('{"rs_hl 3": []}', "got [];"),
    ],
)
def test_a_damaged_leaf_map_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "leaf-map.json").write_text(text)
    with pytest.raises(DataError) as raised:
        read_leaf_map(tmp_path)
    assert message in str(raised.value)
    assert "leaf-map.json" in str(raised.value)
