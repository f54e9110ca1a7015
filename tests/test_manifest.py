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


def test_a_class_folder_whose_name_is_not_utf_8_keeps_it(written: Path) -> None:
    named = replace(MANIFEST, classes=("healthy", "br\udcfblure"))
    named.write(written)
    assert read_manifest(written) == named


def test_a_manifest_without_the_optional_fields_never_abstains_and_is_not_rescaled(written: Path) -> None:
    change(written, temperature="absent", threshold="absent", lineage="absent")
    assert read_manifest(written) == replace(MANIFEST, temperature=1.0, threshold=0.0, lineage={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 2},
            r"expected a manifest with format_version 1; got 2 in '.*'; use the version of AgriDistill that wrote it",
        ),
        ({"format_version": "absent"}, "expected a manifest with format_version 1; got None"),
        ({"temprature": 2.0}, r"expected a known manifest field; got 'temprature' in .*; did you mean 'temperature'\?"),
        ({"classes": "absent"}, r"expected a manifest with 'classes'; got '.*' without it; restore the file"),
        (
            {"classes": "healthy"},
            r"expected classes: a list of names; got 'healthy' in '.*manifest.json'; restore the file",
        ),
        ({"classes": ["a", 1]}, r"expected classes: a list of names; got \['a', 1\] in"),
        ({"classes": ["a", "b", "a"]}, r"expected at least two classes with different names; got \('a', 'b', 'a'\)"),
        ({"classes": ["a"]}, "expected at least two classes"),
        ({"model": None}, "expected model: text; got None in"),
        ({"temperature": 0}, "expected temperature: a number above 0; got 0 in"),
        ({"temperature": float("nan")}, "expected temperature: a number .*; got nan in"),
        ({"temperature": "hot"}, "expected temperature: a number .*; got 'hot' in"),
        ({"threshold": 1.5}, r"expected threshold: a number from 0 to 1; got 1\.5 in"),
        ({"preprocessing": "absent"}, "expected a manifest with 'preprocessing'; got"),
        ({"preprocessing": []}, r"expected preprocessing: an object; got \[\] in"),
        ({"preprocessing": "crop"}, "expected preprocessing: an object; got 'crop' in"),
        ({"temperature": True}, "expected temperature: a number .*; got True in"),
        ({"temperature": "1.5"}, r"expected temperature: a number .*; got '1\.5' in"),
        ({"temperature": float("inf")}, "expected temperature: a number .*; got inf in"),
        ({"temperature": 10**400}, "expected temperature: a number above 0; got 1000"),
        ({"threshold": float("nan")}, "expected threshold: a number .*; got nan in"),
        ({"threshold": None}, "expected threshold: a number .*; got None in"),
        ({"lineage": [["method", "kd"]]}, "expected lineage: an object; got"),
        ({"measured": [["accuracy", 1.0]]}, "expected measured: an object; got"),
        ({"measured": 0.9}, r"expected measured: an object; got 0\.9 in"),
        ({"precision": 8}, "expected precision: 'fp32' or 'int8'; got 8 in"),
        ({"precision": "int4"}, "expected precision: 'fp32' or 'int8'; got 'int4' in"),
        ({"weights_file": 3}, "expected weights_file: text; got 3 in"),
        ({"weights_sha256": None}, "expected weights_sha256: text; got None in"),
    ],
)
def test_a_wrong_field_is_named(written: Path, changes: dict[str, Any], message: str) -> None:
    change(written, **changes)
    with pytest.raises(ModelError, match=message):
        read_manifest(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resise": "crop"}, r"a known manifest field; got 'preprocessing\.resise' .*; did you mean 'resize'\?"),
        ({"resize": "strech"}, r"preprocessing\.resize: 'crop' or 'stretch'; got 'strech' in"),
        ({"resize": ["crop"]}, r"preprocessing\.resize: .*; got \['crop'\] in"),
        ({"image_size": 0}, r"expected preprocessing\.image_size: a whole number from 1 to 4,096; got 0 in"),
        ({"image_size": 1_000_000}, r"from 1 to 4,096; got 1000000 in"),
        ({"image_size": 128.5}, r"preprocessing\.image_size: a whole number .*; got 128\.5 in"),
        ({"image_size": "128"}, r"preprocessing\.image_size: a whole number .*; got '128' in"),
        ({"mean": [0.5, "0.5", 0.5]}, r"preprocessing\.mean: three numbers; got \[0\.5, '0\.5', 0\.5\] in"),
        ({"mean": [0.5, 0.5]}, r"preprocessing\.mean: three numbers; got \[0\.5, 0\.5\] in"),
        ({"mean": [0.5, 0.5, float("inf")]}, r"preprocessing\.mean: three numbers; got \[0\.5, 0\.5, inf\] in"),
        ({"std": [0.2, 0, 0.2]}, r"preprocessing\.std: three numbers above 0; got \[0\.2, 0, 0\.2\] in"),
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
    with pytest.raises(ModelError, match=r"got no file '.*manifest\.json'; pass a finished run or an exported model"):
        read_manifest(tmp_path / "manifest.json")


def test_a_file_in_place_of_a_run_folder_is_told_as_such(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(ModelError) as raised:
        read_manifest(weights / "manifest.json")
    assert str(raised.value) == f"expected a run folder; got the file '{weights}'; pass the folder"


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
    with pytest.raises(ModelError, match=r"expected the weights file student\.safetensors; got no such file"):
        manifest.verified_weights(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    inside = tmp_path / "run"
    inside.mkdir()
    manifest = replace(MANIFEST, weights_file=name, weights_sha256=sha256_of(tmp_path / "model.safetensors"))
    with pytest.raises(ModelError, match=r"expected a file name without folders|got no such file"):
        manifest.verified_weights(inside)
