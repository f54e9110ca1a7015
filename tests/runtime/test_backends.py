import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agridistill.api import load
from agridistill.errors import ModelError
from agridistill.manifest import sha256_of
from agridistill.runtime import engines
from agridistill.runtime.backends import manifest_path, open_artefact


@pytest.fixture
def model(colour_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(manifest_path(colour_model), folder / "m.json")
    path = shutil.copy(colour_model, folder / "m.onnx")
    changed(path, weights_file="m.onnx")
    return path


def changed(model: Path, **fields: Any) -> None:
    """Changes fields of the manifest; nested ones as `preprocessing={...}`."""
    manifest = json.loads(manifest_path(model).read_text())
    for name, value in fields.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value
    manifest_path(model).write_text(json.dumps(manifest))


def replaced(model: Path, content: bytes) -> None:
    """Another content, which the manifest describes correctly."""
    model.write_bytes(content)
    changed(model, weights_sha256=sha256_of(model))


def test_an_exported_file_answers_as_its_network(model: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    logits = open_artefact(model).logits(pixels)
    assert logits.dtype == np.float32
    assert np.allclose(logits, pixels.mean(axis=(1, 2))[:, [1, 0]] / 25.5, atol=1e-4)


@pytest.mark.parametrize(
    ("machine", "usable", "wanted", "threads"), [(4, 1, 0, 1), (4, 2, 0, 2), (4, 2, 4, 4), (2, 2, 0, 0)]
)
def test_onnx_runtime_takes_no_more_threads_than_this_process_may_use_cores(
    model: Path, monkeypatch: pytest.MonkeyPatch, machine: int, usable: int, wanted: int, threads: int
) -> None:
    monkeypatch.setattr(engines.os, "cpu_count", lambda: machine)
    monkeypatch.setattr(engines, "usable_cores", lambda: usable)
    backend: Any = open_artefact(model, engine="onnxruntime", threads=wanted)
    assert backend._session.get_session_options().intra_op_num_threads == threads


def test_photos_are_run_a_few_at_a_time_and_stay_in_order(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    backend = open_artefact(model)
    whole = backend.logits(pixels)
    for at_once in (1, 3, 11, 50):
        monkeypatch.setattr(engines, "_PHOTOS_AT_ONCE", at_once)
        assert np.allclose(backend.logits(pixels), whole, atol=1e-5)


def test_a_batch_of_arrays_is_answered_photo_by_photo(model: Path) -> None:
    photos = np.zeros((5, 20, 30, 3), np.uint8)
    photos[:3, ..., 1] = photos[3:, ..., 0] = 200
    labels = [result.prediction and result.prediction.label for result in load(model).predict_many(photos)]
    assert labels == ["green"] * 3 + ["red"] * 2


def without_manifest(model: Path) -> None:
    manifest_path(model).unlink()


def one_byte_changed(model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[20] ^= 1
    model.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_manifest, r"expected a model manifest; got no file '.*m\.json'; pass a finished run or an exported"),
        (
            one_byte_changed,
            r"expected weights with sha256 \w{12}…; got \w{12}… in '.*m\.onnx'; the file was",
        ),
        (
            lambda model: replaced(model, b"no model"),
            r"expected a model that ONNX Runtime can run; got '.*m\.onnx' \(.+\); export the model again",
        ),
        (lambda model: replaced(model, b""), "expected a model that ONNX Runtime can run"),
        (
            lambda model: changed(model, preprocessing={"image_size": 32}),
            r"expected one input of uint8 photos \(N, 32, 32, 3\); got pixels tensor\(uint8\) .*16, 16, 3\] in '.*'",
        ),
    ],
)
def test_an_unusable_artefact_is_one_clear_error(model: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=message) as caught:
        load(model)
    assert "\n" not in str(caught.value)


def test_a_model_with_other_classes_than_its_manifest_gives_no_answer(model: Path) -> None:
    changed(model, classes=["green", "red", "blue"])
    with pytest.raises(
        ModelError, match=r"expected logits of shape \(1, 3\); got \(1, 2\); check that the manifest belongs"
    ):
        load(model).predict(np.zeros((20, 20, 3), np.uint8))


def test_an_engine_that_does_not_run_the_file_is_refused_before_the_file_is_read(model: Path) -> None:
    with pytest.raises(
        ModelError, match=r"expected an engine for \.onnx files; got 'onnx'; did you mean 'onnxruntime'\?"
    ):
        load(model, engine="onnx")
    with pytest.raises(ModelError, match=r"got 'litert'; known: onnxruntime, openvino"):
        load(model, engine="litert")


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"a pickle, never to be opened")
    with pytest.raises(
        ModelError, match=r"expected a run folder or an exported model \(\.onnx, \.tflite\); got '.*m\.pt'; pass one"
    ):
        load(tmp_path / "m.pt")


def test_a_model_whose_two_files_were_renamed_alike_is_the_same_model(colour_model: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".json"):
        shutil.copy(colour_model.with_suffix(suffix), tmp_path / f"other{suffix}")
    photo = np.zeros((1, 16, 16, 3), np.uint8)
    found = [open_artefact(file).logits(photo) for file in (colour_model, tmp_path / "other.onnx")]
    np.testing.assert_array_equal(*found)


def test_a_prediction_leaves_nothing_of_an_engines_maker(colour_model: Path, tmp_path: Path) -> None:
    # What could hide the id is left out.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    script = "import sys, agridistill; agridistill.load(sys.argv[1], engine='onnxruntime')"
    subprocess.run(
        [sys.executable, "-c", script, str(colour_model)],
        env=environment | {"HOME": str(tmp_path)},
        check=True,
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_ctrl_c_while_an_engine_is_imported_is_no_missing_engine(model: Path) -> None:
    with pytest.raises(KeyboardInterrupt), engines._loading("ONNX Runtime", model, "install it"):
        raise ImportError("initialization failed") from KeyboardInterrupt()
