from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agridistill.data.likeness import LearntPhotos, learnt_path, read_learnt, write_learnt
from agridistill.manifest import ModelManifest, Preprocessing

DATA = "ab" * 32


def manifest(fingerprint: str | None = DATA) -> ModelManifest:
    lineage = {} if fingerprint is None else {"data_fingerprint": fingerprint}
    return ModelManifest("net", ("a", "b"), Preprocessing(16), "a.onnx", "0", lineage=lineage)


def test_photos_are_known_again(tmp_path: Path) -> None:
    file = tmp_path / "a.learnt"
    write_learnt(file, DATA, [*range(1000), 5, 2**64 - 1])
    known = read_learnt(file, manifest())
    assert known is not None
    assert len(known.entries) == 1001
    assert known.count([[3], [3], [2**64 - 1], [2**63]]) == 3
    assert known.count([[2**63, 4], [4, 3]]) == 2
    assert known.count([phash] for phash in range(10**6, 2 * 10**6)) <= 1
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
    assert "is damaged or of another model" in caplog.text


def test_the_file_lies_in_a_run_or_beside_an_artefact(tmp_path: Path) -> None:
    assert learnt_path(tmp_path) == tmp_path / "learnt.bin"
    assert learnt_path(tmp_path / "leaf.onnx") == tmp_path / "leaf.learnt"


def test_no_photo_is_known_to_a_model_that_learnt_none() -> None:
    assert LearntPhotos(frozenset()).count([[1], [2]]) == 0


def test_photos_of_earlier_models_are_inherited(tmp_path: Path) -> None:
    earlier, later = tmp_path / "a.learnt", tmp_path / "b.learnt"
    write_learnt(earlier, DATA, [1, 2])
    known = read_learnt(earlier, manifest())
    assert known is not None
    write_learnt(later, DATA, [3], [known])
    both = read_learnt(later, manifest())
    assert both is not None
    assert both.count([[1], [2], [3], [4]]) == 3
