"""`--attention`: the file gives the run's own map beside logits that do not change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from agridistill import api
from agridistill.errors import ModelError
from agridistill.export import artefact
from agridistill.export.artefact import export
from agridistill.manifest import ModelManifest, Precision, Preprocessing
from agridistill.preprocess import Pixels
from agridistill.runtime.predictor import read_pixels


@pytest.fixture(scope="module")
def photos(leaves: Path) -> Pixels:
    return np.stack([read_pixels(path, Preprocessing(64)) for path in sorted(leaves.rglob("*.jpg"))[::10]])


@pytest.mark.parametrize(
    ("precision", "atol", "correlation"),
    [("fp32", 1e-4, 0.9999), pytest.param("int8", 0.25, 0.95, marks=pytest.mark.slow)],
)
def test_the_files_map_is_the_runs_map(
    student_run: Path,
    photos: Pixels,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    precision: Precision,
    atol: float,
    correlation: float,
) -> None:
    files = [request.getfixturevalue(precision), tmp_path / "leaf.onnx"]
    export(student_run, files[1], precision=precision, attention=True, force=True)
    plain, attentive = (api.load(file, engine="onnxruntime").backend for file in files)
    np.testing.assert_array_equal(attentive.logits(photos), plain.logits(photos))
    expected, found = (each.attention(photos) for each in (api.load(student_run).backend, attentive))  # type: ignore[attr-defined]
    assert found.dtype == np.float32
    assert found.shape == (len(photos), 4, 4)
    np.testing.assert_allclose(found, expected, atol=atol)
    for one, other in zip(found, expected, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] >= correlation
    assert [each.name for each in onnx.load(files[0]).graph.output] == ["logits"]
    assert [each.name for each in onnx.load(files[1]).graph.output] == ["logits", "attention"]
    with pytest.raises(ModelError, match=r"a file with attention maps; got none in '.*'; export it with --attention"):
        plain.attention(photos)  # type: ignore[attr-defined]
    if precision == "int8":
        assert _operators_before_attention(files[1]) == ["Div", "ReduceMean", "Pow", "DequantizeLinear"]
    # Both show a photo in the same way, although only one of them is a file.
    shown = [api.load(model).explain(photos[0]) for model in (student_run, files[1], files[0])]
    assert [each.method for each in shown] == ["attention", "attention", "occlusion"]
    np.testing.assert_allclose(shown[0].map, shown[1].map, atol=atol)


def _operators_before_attention(file: Path) -> list[str]:
    """The operators from the attention back to the rounding of the activations."""
    makers = {name: node for node in onnx.load(file).graph.node for name in node.output}
    found, node = [], makers["attention"]
    while node.op_type != "QuantizeLinear":
        found.append(node.op_type)
        node = makers[node.input[0]]
    return found


@pytest.mark.slow
def test_the_map_is_that_of_the_deepest_stage_that_the_run_aligned(
    student_run: Path, photos: Pixels, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student_run, tmp_path / "run"))
    (run / "recipe.toml").write_text(
        "[objective]\npairs = [{student = 16, teacher = 16}, {student = 32, teacher = 32}]"
    )
    export(run, tmp_path / "leaf.onnx", attention=True, force=True)
    expected, found = (api.load(model).backend.attention(photos) for model in (run, tmp_path / "leaf.onnx"))  # type: ignore[attr-defined]
    assert found.shape == (len(photos), 2, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_network_without_maps_is_refused_before_anything_is_converted(
    student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    network = timm.create_model("test_vit", num_classes=6, img_size=160)
    manifest = ModelManifest("test_vit", tuple("abcdef"), Preprocessing(160), "", "")
    monkeypatch.setattr(artefact, "load_network", lambda run: (network, manifest))
    with pytest.raises(ModelError, match=r"feature maps at stride 16, for --attention; got 'test_vit' .*; leave out"):
        export(student_run, tmp_path / "leaf.onnx", attention=True)
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_refused(student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected an \.onnx file for --attention; got 'leaf.tflite'; leave out"):
        export(student_run, tmp_path / "leaf.tflite", attention=True)
