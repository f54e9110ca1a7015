"""From a finished run to a file on the disk."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from agridistill import api
from agridistill.data.folder import scan
from agridistill.data.split import Split, digests_of, read_split, write_split
from agridistill.errors import DataError, ModelError
from agridistill.export import artefact
from agridistill.export import onnx as onnx_format
from agridistill.export.artefact import export
from agridistill.export.onnx import to_onnx
from agridistill.export.parity import Gate, compare
from agridistill.manifest import ModelManifest, read_manifest


def test_an_artefact_answers_as_its_run_does(student_run: Path, fp32: Path, patches: NDArray[np.uint8]) -> None:
    expected = api.load(student_run).backend.logits(patches)
    np.testing.assert_allclose(api.load(fp32).backend.logits(patches), expected, rtol=1e-3, atol=1e-4)


def test_an_artefact_is_one_file_that_takes_photos_as_they_are(fp32: Path) -> None:
    assert sorted(path.name for path in fp32.parent.iterdir()) == ["leaf.json", "leaf.learnt", "leaf.onnx"]
    model = onnx.load(fp32)
    (pixels,) = model.graph.input
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_value for size in pixels.type.tensor_type.shape.dim][1:] == [64, 64, 3]
    assert not any(item.external_data for item in model.graph.initializer)
    # Nothing but arithmetic: no batch norm, no shapes computed anew for each photo.
    assert not {"BatchNormalization", "Gather", "Range", "Expand"} & {node.op_type for node in model.graph.node}


@pytest.mark.slow
def test_a_fixed_batch_of_one_gives_the_same_logits(
    deployable: Callable[[bool], tuple[Any, ...]], patches: NDArray[np.uint8], tmp_path: Path
) -> None:
    network, manifest, *_ = deployable(True)
    files = {batch: tmp_path / f"{batch}.onnx" for batch in (None, 1)}
    for batch, file in files.items():
        model = to_onnx(network, manifest.preprocessing, int8=True, batch=batch)
        file.write_bytes(model.SerializeToString())
        manifest.with_weights(file).write(file.with_suffix(".json"))
        sizes = [
            size.dim_value
            for value in (*model.graph.input, *model.graph.output)
            for size in value.type.tensor_type.shape.dim[:1]
        ]
        assert sizes == [batch or 0] * 2
    found = [api.load(file, engine="onnxruntime").backend.logits(patches) for file in files.values()]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("batch", "name"), [(2, "leaf.onnx"), (1, "leaf.tflite")])
def test_other_batches_are_refused(student_run: Path, tmp_path: Path, batch: int, name: str) -> None:
    with pytest.raises(ModelError, match=f"expected a batch size of 1 and an .onnx file; got {batch} for '{name}'"):
        export(student_run, tmp_path / name, batch=batch)


@pytest.mark.slow
def test_an_artefact_knows_the_photos_that_its_run_learnt_from(
    student_run: Path, leaves: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "leaf.onnx"
    out.with_suffix(".learnt").write_bytes(b"of the artefact that was here before")
    export(student_run, out, force=True)
    assert out.with_suffix(".learnt").read_bytes() == (student_run / "learnt.bin").read_bytes()
    # A copy under other names.
    split = read_split(student_run / "splits.json")
    for number, path in enumerate((*split.train[:20], *split.train[-20:], *split.test)):
        copy = tmp_path / "copy" / Path(path).parent.name / f"{number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(leaves / path, copy)
    for name in read_manifest(student_run / "manifest.json").classes:
        assert (tmp_path / "copy" / name).is_dir()
    found = api.evaluate(out, tmp_path / "copy", split="all")
    assert f"the model has learnt from at least 40 of these {found.photos} photos" in caplog.text


def test_the_int8_file_computes_what_its_rounded_network_computes(
    tmp_path: Path, deployable: Callable[[bool], tuple[Any, ...]], patches: NDArray[np.uint8]
) -> None:
    network, manifest, expected, exact = deployable(True)
    file = tmp_path / "leaf.onnx"
    file.write_bytes(to_onnx(network, manifest.preprocessing, int8=True).SerializeToString())
    manifest.with_weights(file).write(file.with_suffix(".json"))
    found = api.load(file).backend.logits(patches)
    # A sum that falls between two levels may go either way, which is less than what rounding itself does.
    assert np.abs(found - expected).std() < np.abs(expected - exact).std()


def test_int8_stores_weights_in_8_bits_and_biases_in_32(int8: Path, fp32: Path) -> None:
    graph = onnx.load(int8).graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    weights = [item for item in graph.initializer if len(item.dims) > 1]
    assert len(weights) > 20
    floats = [item.name for item in weights if item.data_type != onnx.TensorProto.INT8]
    assert floats == []
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 20
    for node in convolutions:
        assert kinds[makers[node.input[1]].input[0]] == onnx.TensorProto.INT8
        assert kinds[makers[node.input[2]].input[0]] == onnx.TensorProto.INT32
    assert int8.stat().st_size < 0.5 * fp32.stat().st_size


def test_int8_takes_a_photos_pixels_for_levels(int8: Path) -> None:
    graph = onnx.load(int8).graph
    (pixels,) = graph.input
    way, value = [], pixels.name
    while not way or way[-1].op_type != "Conv":
        (node,) = (node for node in graph.node if value in node.input)
        way.append(node)
        value = node.output[0]
    assert [node.op_type for node in way] == ["Transpose", "DequantizeLinear", "Conv"]
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    constants |= {item.name: item for item in graph.initializer}
    # The mean of ImageNet's channels, where they are padded.
    assert onnx.numpy_helper.to_array(constants[way[1].input[2]]) == np.uint8(114)


def test_the_manifest_holds_the_artefacts_own_figures(student_run: Path, int8: Path) -> None:
    manifest = read_manifest(int8.with_suffix(".json"))
    parent = read_manifest(student_run / "manifest.json")
    assert manifest.precision == "int8"
    assert manifest.classes == parent.classes
    assert manifest.lineage["run_weights_sha256"] == parent.weights_sha256
    assert manifest.lineage["split_sha256"] == digests_of(read_split(student_run / "splits.json"))
    measured = manifest.measured
    assert measured["photos"] > 0
    assert 0 <= measured["top1_agreement"] <= 1
    assert measured["size_bytes"] == int8.stat().st_size
    assert measured["macs"] > 1e5
    evaluation = api.evaluate(int8, json.loads((student_run / "environment.json").read_text())["data"], split="all")
    assert evaluation.macs == measured["macs"]
    assert evaluation.temperature == manifest.temperature


def test_one_call_loads_a_run_or_an_artefact(fp32: Path, leaves: Path) -> None:
    photo = next(leaves.rglob("*.jpg"))
    prediction = api.load(fp32).predict(photo)
    assert prediction.label in read_manifest(fp32.with_suffix(".json")).classes


def test_an_artefact_that_lost_too_much_is_not_written(
    student_run: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "_converted", lambda *args, **options: fp32.read_bytes())  # it takes a while
    monkeypatch.setitem(artefact.GATES, "fp32", Gate(top1_agreement=1.01, lost_points=-1.0))
    with pytest.raises(ModelError, match=r"top-1 agreement .* pass --force"):
        export(student_run, tmp_path / "leaf.onnx")
    assert list(tmp_path.iterdir()) == []


def test_few_photos_are_measured_with_a_warning_and_others_compared(
    student_run: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artefact, "_converted", lambda *args, **options: fp32.read_bytes())
    result = export(student_run, tmp_path / "leaf.onnx")
    assert result.parity.photos == len(read_split(student_run / "splits.json").val)
    assert result.parity.compared_photos == 96
    assert f"only {result.parity.photos} validation photos" in caplog.text
    assert result.to_json()["answers_cross_validated"] is True
    assert read_manifest(tmp_path / "leaf.json").threshold < 1


def test_a_run_and_its_artefact_answer_by_the_same_limits(student_run: Path, fp32: Path) -> None:
    run, file = read_manifest(student_run / "manifest.json"), read_manifest(fp32.with_suffix(".json"))
    assert file.threshold == pytest.approx(run.threshold, abs=1e-3)
    assert file.temperature == pytest.approx(run.temperature, rel=1e-2)
    assert file.familiarity == run.familiarity != {}


@pytest.mark.parametrize(
    ("photos", "lost", "gained", "fails"),
    [(60, 1, 0, False), (60, 4, 0, False), (60, 7, 0, True), (60, 7, 6, False), (199, 4, 0, False), (200, 3, 0, True)],
)
def test_lost_accuracy_fails_only_beyond_chance(photos: int, lost: int, gained: int, fails: bool) -> None:
    network, file = np.tile([1.0, 0.0], (photos, 1)), np.tile([1.0, 0.0], (photos, 1))
    target = np.zeros(photos, np.int64)
    file[:lost] = [0.0, 1.0]
    target[lost : lost + gained] = 1
    file[lost : lost + gained] = [0.0, 1.0]
    parity = compare(network, file, target)
    assert (parity.newly_wrong, parity.newly_right) == (lost, gained)
    assert bool(Gate(0.0, 1.0).failures(parity)) == fails


def test_other_suffixes_are_refused(student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ends in \.onnx or \.tflite"):
        export(student_run, tmp_path / "leaf.pt")


def test_an_artefact_does_not_take_anothers_manifest(student_run: Path, fp32: Path) -> None:
    before = fp32.with_suffix(".json").read_bytes()
    with pytest.raises(ModelError, match=r"leaf\.json', which belongs to 'leaf\.onnx'; choose another name"):
        export(student_run, fp32.with_suffix(".tflite"), force=True)
    assert fp32.with_suffix(".json").read_bytes() == before


def test_a_file_that_is_no_manifest_is_not_overwritten(student_run: Path, tmp_path: Path) -> None:
    (tmp_path / "leaf.json").write_text('{"accuracy": 0.9}')
    with pytest.raises(
        ModelError,
        match=r"got '.*leaf\.json', which is another file; choose another name or folder",
    ):
        export(student_run, tmp_path / "leaf.onnx", force=True)
    assert (tmp_path / "leaf.json").read_text() == '{"accuracy": 0.9}'


def test_without_validation_photos_nothing_can_be_measured(student_run: Path, leaves: Path, tmp_path: Path) -> None:
    paths = [sample.path for sample in scan(leaves).samples]
    split = Split(tuple(paths[1:]), (), (paths[0],))
    write_split(tmp_path / "split.json", split, seed=0, val_fraction=0.0, test_fraction=0.1, fingerprint="")
    with pytest.raises(DataError, match=r"validation photos to measure the exported model on; got none"):
        export(student_run, tmp_path / "leaf.onnx", data=leaves, split_file=tmp_path / "split.json", force=True)


def test_a_manifest_that_cannot_be_written_leaves_the_old_artefact_whole(
    student_run: Path, fp32: Path, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "_converted", lambda *args, **options: int8.read_bytes())
    folder = Path(shutil.copytree(fp32.parent, tmp_path / "artefact"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write, written = ModelManifest.write, []

    def fails_at_last(manifest: ModelManifest, path: Path) -> None:
        written.append(path)
        if len(written) == 2:  # the first one is of the draft
            raise OSError(errno.ENOSPC, "No space left on device")
        write(manifest, path)

    monkeypatch.setattr(ModelManifest, "write", fails_at_last)
    with pytest.raises(OSError, match="No space left"):
        export(student_run, folder / "leaf.onnx", force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_model_of_another_run_is_not_replaced_without_a_word(
    student_run: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artefact, "_converted", lambda *args, **options: fp32.read_bytes())
    out = tmp_path / "leaf.onnx"
    for _ in range(2):
        export(student_run, out, force=True)
    assert "is replaced" not in caplog.text
    document = json.loads(out.with_suffix(".json").read_text())
    document["lineage"] |= {"run": "first", "run_weights_sha256": "0" * 64}
    out.with_suffix(".json").write_text(json.dumps(document))
    export(student_run, out, force=True)
    assert f"'{out}' of another run ('first') is replaced" in caplog.text


def test_a_split_file_says_which_photos_are_for_validation(
    student_run: Path, fp32: Path, leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "_converted", lambda *args, **options: fp32.read_bytes())
    paths = [sample.path for sample in scan(leaves).samples]
    split = Split(tuple(paths[::2]), tuple(paths[1::2]), ())
    write_split(tmp_path / "split.json", split, seed=0, val_fraction=0.5, test_fraction=0.0, fingerprint="")
    result = export(student_run, tmp_path / "leaf.onnx", split_file=tmp_path / "split.json", force=True)
    assert result.parity.photos == len(paths[1::2])
    alone = Path(shutil.copytree(student_run, tmp_path / "alone"))
    (alone / "splits.json").unlink()
    result = export(alone, tmp_path / "alone.onnx", data=leaves, split_file=tmp_path / "split.json", force=True)
    assert result.parity.photos == len(paths[1::2])


def test_a_network_that_no_converter_knows_is_one_line(
    student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyError("aten.strange")

    monkeypatch.setattr(onnx_format, "to_onnx", fail)
    with pytest.raises(ModelError, match=r"can be written as \.onnx; got .*aten\.strange.*; try another format"):
        export(student_run, tmp_path / "leaf.onnx", force=True)
    assert list(tmp_path.iterdir()) == []


def test_parity_is_counted_photo_by_photo() -> None:
    network = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]], np.float32)
    file = np.array([[1.0, 1.5], [0.0, 1.0], [3.0, 0.0], [0.0, 1.25]], np.float32)
    found = compare(network, file, np.array([0, 1, 1, 1]))
    assert (found.top1_agreement, found.accuracy, found.network_accuracy) == (0.75, 0.5, 0.75)
    assert found.largest_logit_difference == 1.0
    assert found.lost_points == 25.0
    assert Gate(0.7, 25.0).failures(found) == []
    assert len(Gate(0.8, 20.0).failures(found)) == 1
