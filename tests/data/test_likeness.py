from __future__ import annotations

import logging
import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from agridistill.data.drawn_leaves import draw_leaf
from agridistill.data.inspection import inspect_photo
from agridistill.data.likeness import (
    COPY_BITS,
    NEAR_DUPLICATE_BITS,
    TURNS,
    copy_groups,
    count_learnt,
    exact_groups,
    learnt_path,
    look_of,
    merge_groups,
    near_groups,
    near_pairs,
    read_learnt,
    turns,
    write_learnt,
)
from agridistill.manifest import ModelManifest, Preprocessing


def _reference_pairs(values: np.ndarray) -> set[tuple[int, int]]:
    """Every pair compared."""
    return {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (int(values[i]) ^ int(values[j])).bit_count() <= NEAR_DUPLICATE_BITS
    }


def _pairs(values: np.ndarray) -> set[tuple[int, int]]:
    return {pair for first, second in near_pairs(values) for pair in zip(first.tolist(), second.tolist(), strict=True)}


def _clustered_hashes(seed: int) -> np.ndarray:
    """Unique hashes with many pairs at every small distance."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 12, np.uint64)
    values = set(centres.tolist())
    for centre in centres.tolist():
        for flips in range(1, 9):
            for _ in range(3):
                bits = rng.choice(64, flips, replace=False)
                values.add(centre ^ sum(1 << int(bit) for bit in bits))
    return np.array(sorted(values), np.uint64)


@pytest.mark.parametrize("seed", range(4))
def test_the_pairs_are_those_of_comparing_all_with_all(seed: int) -> None:
    values = _clustered_hashes(seed)
    expected = _reference_pairs(values)
    assert expected
    assert _pairs(values) == expected


def test_photos_of_one_hash_or_of_near_ones_are_a_group() -> None:
    hashes = {"d": 2**40 - 2**20, "a": 0, "b": 0b1111, "c": 0, "far": 2**64 - 1}
    assert near_groups(hashes) == [["a", "b", "c"]]


def test_no_photos_have_no_groups() -> None:
    assert near_groups({}) == []


def test_many_flat_photos_cost_no_more_than_others() -> None:
    hashes = {f"flat{number}": 0 for number in range(50_000)}
    start = time.process_time()
    groups = near_groups(hashes)
    assert time.process_time() - start < 10
    assert [len(group) for group in groups] == [50_000]


def test_thirty_thousand_hashes_take_seconds() -> None:
    values = np.unique(np.random.default_rng(0).integers(0, 2**64, 30_000, np.uint64))
    start = time.process_time()
    pairs = _pairs(values)
    assert time.process_time() - start < 10
    assert pairs == set()


def test_exact_groups_hold_identical_files_only() -> None:
    assert exact_groups({"b": "1", "a": "1", "c": "2"}) == [["a", "b"]]


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


def test_the_perceptual_hash_is_imagehashs(leaf: Image.Image, tmp_path: Path) -> None:
    # Files of learnt photos, which models bring along, hold it.
    expected = int(str(imagehash.phash(leaf)), 16)
    leaf.save(tmp_path / "leaf.png")
    assert inspect_photo(tmp_path / "leaf.png").phash == expected


def _reference_groups(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Flood fill over an adjacency list."""
    neighbours: dict[int, set[int]] = {item: set() for item in range(count)}
    for first, second in pairs:
        neighbours[first].add(second)
        neighbours[second].add(first)
    groups, seen = [], set()
    for item in range(count):
        if item in seen:
            continue
        group, waiting = {item}, [item]
        while waiting:
            waiting += (new := neighbours[waiting.pop()] - group)
            group |= new
        seen |= group
        groups.append(sorted(group))
    return groups


def test_merged_groups_are_the_connected_components() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 30, (20, 2))]
        merged = merge_groups(map(str, range(30)), [(str(first), str(second)) for first, second in pairs])
        assert merged == [[str(item) for item in group] for group in _reference_groups(30, pairs)]


def test_groups_of_nothing_join_nothing() -> None:
    assert merge_groups("ab", ["", "a"]) == [["a"], ["b"]]
    assert merge_groups((), ()) == []


def test_a_long_chain_is_one_group() -> None:
    chain = [str(item) for item in range(50_000)]
    assert len(merge_groups(chain, zip(chain[1:], chain[:-1], strict=True))) == 1


DATA = "ab" * 32


def manifest(fingerprint: str | None = DATA) -> ModelManifest:
    lineage = {} if fingerprint is None else {"data_fingerprint": fingerprint}
    return ModelManifest("net", ("a", "b"), Preprocessing(16), "a.onnx", "0", lineage=lineage)


def test_photos_are_known_again(tmp_path: Path) -> None:
    file = tmp_path / "a.learnt"
    write_learnt(file, DATA, [*range(1000), 5, 2**64 - 1])
    known = read_learnt(file, manifest())
    assert known is not None
    assert len(known) == 1001
    assert count_learnt(known, [[3], [3], [2**64 - 1], [2**63]]) == 3
    assert count_learnt(known, [[2**63, 4], [4, 3]]) == 2
    assert count_learnt(known, ([phash] for phash in range(10**6, 2 * 10**6))) <= 1
    # Small enough for a wheel.
    assert file.stat().st_size < 5 * 1001 + 100


def test_a_model_without_the_file_knows_nothing_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_learnt(tmp_path / "a.learnt", manifest()) is None
    assert caplog.messages == []


@pytest.mark.parametrize("fault", ["cut", "text", "another model", "a model of unknown data", "empty"])
def test_a_file_that_cannot_be_trusted_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    file = tmp_path / "a.learnt"
    write_learnt(file, DATA, range(10))
    contents = {"cut": file.read_bytes()[:-1], "text": b"hello", "empty": b""}
    file.write_bytes(contents.get(fault, file.read_bytes()))
    of = {"another model": manifest("cd" * 32), "a model of unknown data": manifest(None)}.get(fault, manifest())
    with caplog.at_level(logging.WARNING):
        assert read_learnt(file, of) is None
    assert "is damaged or belongs to another model" in caplog.text


def test_the_file_lies_in_a_run_or_beside_an_artefact(tmp_path: Path) -> None:
    assert learnt_path(tmp_path) == tmp_path / "learnt.bin"
    assert learnt_path(tmp_path / "leaf.onnx") == tmp_path / "leaf.learnt"


def test_no_photo_is_known_to_a_model_that_learnt_none() -> None:
    assert count_learnt(frozenset(), [[1], [2]]) == 0


def test_photos_of_earlier_models_are_inherited(tmp_path: Path) -> None:
    earlier, later = tmp_path / "a.learnt", tmp_path / "b.learnt"
    write_learnt(earlier, DATA, [1, 2])
    known = read_learnt(earlier, manifest())
    assert known is not None
    write_learnt(later, DATA, [3], [known])
    both = read_learnt(later, manifest())
    assert both is not None
    assert count_learnt(both, [[1], [2], [3], [4]]) == 3
