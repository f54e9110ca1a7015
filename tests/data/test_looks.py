from __future__ import annotations

import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from agridistill.data.datasets.drawn_leaves import draw_leaf
from agridistill.data.inspection import inspect_photo, perceptual_hash
from agridistill.data.likeness import COPY_BITS, TURNS, copy_groups, look_of, turns


def _bits_apart(first: np.ndarray, second: np.ndarray) -> int:
    return int((first != second).sum())


def _hex(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


@pytest.fixture(scope="module")
def leaf() -> Image.Image:
    return draw_leaf("mosaic", np.random.default_rng(0), np.random.default_rng(1), 64)


def test_the_looks_of_all_turns_follow_from_one(leaf: Image.Image) -> None:
    tiny = leaf.convert("L").resize((32, 32))
    look = look_of(tiny)
    assert look is not None
    found = [_hex(bits[0]) for bits in turns([look])]
    turned = [look_of(tiny)] + [look_of(tiny.transpose(turn)) for turn in Image.Transpose]
    assert len(found) == TURNS
    assert set(found) == set(turned)
    assert found[0] == look


def test_a_copy_is_near_and_another_leaf_far(leaf: Image.Image, tmp_path: Path) -> None:
    other = draw_leaf("mosaic", np.random.default_rng(2), np.random.default_rng(3), 64)
    leaf.save(tmp_path / "a.png")
    leaf.resize((48, 48)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", quality=60)
    other.save(tmp_path / "c.png")
    looks = {name: str(inspect_photo(tmp_path / name).look) for name in ("a.png", "b.jpg", "c.png")}
    assert copy_groups(looks) == [["a.png", "b.jpg"]]


def test_groups_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    originals = rng.random((20, 16, 16)) < 0.5
    bits = [*originals]
    for number in range(60):
        all_turns = np.stack(list(turns([_hex(originals[number % 20])])))[:, 0]
        changed = all_turns[number % TURNS].copy()
        # Copies differ in high frequencies first.
        cells = 13 * 16 + rng.choice(48, number % 48, replace=False)
        changed.flat[cells] ^= True
        bits.append(changed)
    looks = {f"{number:02}": _hex(one) for number, one in enumerate(bits)}
    expected = {
        (i, j)
        for i in range(80)
        for j in range(i + 1, 80)
        for turned in turns([_hex(bits[j])])
        if _bits_apart(bits[i], turned[0]) <= COPY_BITS
    }
    groups = copy_groups(looks)
    joined = {(i, j) for group in groups for i in map(int, group) for j in map(int, group) if i < j}
    assert expected
    assert expected <= joined
    # What is joined through others hangs on one original.
    assert all(len({int(name) if int(name) < 20 else (int(name) - 20) % 20 for name in group}) == 1 for group in groups)


def test_photos_of_one_colour_have_no_look(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), (7, 8, 9)).save(tmp_path / "flat.png")
    assert inspect_photo(tmp_path / "flat.png").look is None
    assert copy_groups({}) == []


def test_identical_looks_cost_no_more_than_others() -> None:
    look = _hex(np.random.default_rng(0).random((16, 16)) < 0.5)
    start = time.process_time()
    groups = copy_groups({str(number): look for number in range(20_000)})
    assert time.process_time() - start < 5
    assert [len(group) for group in groups] == [20_000]


def test_twenty_thousand_looks_take_seconds() -> None:
    bits = np.random.default_rng(0).integers(0, 256, (20_000, 32), np.uint8)
    start = time.process_time()
    assert copy_groups({str(number): row.tobytes().hex() for number, row in enumerate(bits)}) == []
    assert time.process_time() - start < 10


def test_the_perceptual_hash_is_imagehashs(leaf: Image.Image) -> None:
    # Files of learnt photos, which models bring along, hold it.
    expected = int(str(imagehash.phash(leaf)), 16)
    assert perceptual_hash(leaf) == expected
