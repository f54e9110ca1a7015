import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agridistill.errors import ModelError
from agridistill.manifest import ModelManifest, Preprocessing, read_manifest, sha256_of

MANIFEST = ModelManifest(
    model="mobilenetv3_large_100",
    classes=("healthy", "late blight"),
    preprocessing=Preprocessing(128, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    weights_file="model.safetensors",
    weights_sha256="ab" * 32,
    temperature=1.5,
    threshold=0.25,
    lineage={"method": "hybrid", "seed": 3},
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    MANIFEST.write(path)
    return path


def change(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (document | changes).items() if value != "absent"}))


def test_a_manifest_reads_back_as_it_was_written(written: Path) -> None:
    assert read_manifest(written) == MANIFEST


def test_a_manifest_without_the_optional_fields_never_abstains_and_is_not_rescaled(written: Path) -> None:
    change(written, temperature="absent", threshold="absent", lineage="absent")
    assert read_manifest(written) == replace(MANIFEST, temperature=1.0, threshold=0.0, lineage={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"expected manifest format 1; got 2 in '.*'; use the version that wrote it"),
        ({"format_version": "absent"}, "expected manifest format 1; got None"),
        ({"temprature": 2.0}, r"expected a known manifest field; got 'temprature' in .*; did you mean 'temperature'\?"),
        ({"classes": "absent"}, r"expected a complete manifest; got '.*' without 'classes'; restore the file"),
        ({"classes": "healthy"}, r"expected a complete manifest; got '.*' \('healthy' is not a list\)"),
        ({"classes": ["a", 1]}, "1 is not text"),
        ({"classes": ["a", "b", "a"]}, r"expected at least two classes, each named once; got \('a', 'b', 'a'\)"),
        ({"classes": ["a"]}, "expected at least two classes"),
        ({"model": None}, "None is not text"),
        ({"temperature": 0}, r"expected a positive temperature; got 0\.0; correct the manifest"),
        ({"temperature": float("nan")}, "expected a positive temperature; got nan"),
        ({"temperature": "hot"}, "expected a complete manifest"),
        ({"threshold": 1.5}, r"expected a threshold from 0 to 1; got 1\.5"),
        ({"preprocessing": "absent"}, "without 'preprocessing'"),
        ({"preprocessing": []}, r"expected a complete manifest; got '.*' \(\[\] is not an object\)"),
        ({"preprocessing": "crop"}, "'crop' is not an object"),
        ({"temperature": True}, "True is not a number"),
        ({"temperature": "1.5"}, r"'1\.5' is not a number"),
        ({"temperature": float("inf")}, "expected a positive temperature; got inf"),
        ({"temperature": 10**400}, r"expected a complete manifest; got '.*' \(int too large"),
        ({"threshold": float("nan")}, "expected a threshold from 0 to 1; got nan"),
        ({"threshold": None}, "None is not a number"),
        ({"lineage": [["method", "kd"]]}, "is not an object"),
        ({"measured": [["accuracy", 1.0]]}, "is not an object"),
        ({"measured": 0.9}, "0.9 is not an object"),
        ({"precision": 8}, "8 is not text"),
        ({"precision": "int4"}, r"expected a precision; got 'int4'; did you mean 'int8'\?"),
        ({"weights_file": 3}, "3 is not text"),
        ({"weights_sha256": None}, "None is not text"),
    ],
)
def test_a_wrong_field_is_named(written: Path, changes: dict[str, Any], message: str) -> None:
    change(written, **changes)
    with pytest.raises(ModelError, match=message):
        read_manifest(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resise": "crop"}, r"expected a known manifest field; got 'resise' .*; did you mean 'resize'\?"),
        ({"resize": "strech"}, r"expected a resize rule; got 'strech'; did you mean 'stretch'\?"),
        ({"resize": ["crop"]}, r"\['crop'\] is not text"),
        ({"image_size": 0}, "expected an image size of 1 to 4096 px; got 0"),
        ({"image_size": 1_000_000}, "expected an image size of 1 to 4096 px; got 1000000"),
        ({"image_size": 128.5}, r"128\.5 is not a whole number"),
        ({"image_size": "128"}, "'128' is not a whole number"),
        ({"mean": [0.5, "0.5", 0.5]}, r"'0\.5' is not a number"),
        ({"mean": [0.5, 0.5]}, "expected a complete manifest"),
        ({"mean": [0.5, 0.5, float("inf")]}, "expected finite means"),
        ({"std": [0.2, 0, 0.2]}, "expected positive standard deviations"),
    ],
)
def test_a_wrong_preprocessing_field_is_named(written: Path, changes: dict[str, Any], message: str) -> None:
    change(written, preprocessing=json.loads(written.read_text())["preprocessing"] | changes)
    with pytest.raises(ModelError, match=message):
        read_manifest(written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected a model manifest in JSON"),
        (b"\xff\xfe\x00", "expected a model manifest in JSON"),
        (b"[]", "which holds no JSON object"),
        (b"[" * 100_000, "expected a model manifest in JSON"),
        (b'{"temperature": ' + b"1" * 10_000 + b"}", "expected a model manifest in JSON"),
        (b" " * 4_000_001, r"expected a model manifest in JSON; got '.*' \(more than 4,000,000 bytes\)"),
    ],
)
def test_what_is_no_manifest_is_refused(written: Path, content: bytes, message: str) -> None:
    written.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_manifest(written)


def test_a_missing_manifest_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"got no file '.*manifest\.json'; name a finished run or an exported model"):
        read_manifest(tmp_path / "manifest.json")


def test_a_file_in_place_of_a_run_folder_is_told_as_such(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(ModelError) as raised:
        read_manifest(weights / "manifest.json")
    assert str(raised.value) == f"expected a run folder; got the file '{weights}'; name the folder"


def test_weights_are_used_only_as_the_manifest_describes_them(tmp_path: Path) -> None:
    weights = tmp_path / "student.safetensors"
    weights.write_bytes(b"weights")
    manifest = MANIFEST.with_weights(weights)
    assert manifest.weights_sha256 == sha256_of(weights)
    assert manifest.verified_weights(tmp_path) == weights
    weights.write_bytes(b"wei9hts")
    with pytest.raises(
        ModelError, match=r"expected weights with sha256 \w{12}…; got \w{12}… in .*; the file was changed"
    ):
        manifest.verified_weights(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"expected the weights student\.safetensors; got no such file"):
        manifest.verified_weights(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    inside = tmp_path / "run"
    inside.mkdir()
    manifest = replace(MANIFEST, weights_file=name, weights_sha256=sha256_of(tmp_path / "model.safetensors"))
    with pytest.raises(ModelError, match=r"expected a weights file beside its manifest|got no such file"):
        manifest.verified_weights(inside)
