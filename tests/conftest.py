"""Drawn leaves and a tiny trained teacher, made once for each test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agridistill.data.synthetic import draw_leaves
from agridistill.manifest import ModelManifest, Preprocessing, sha256_of

TINY_SWIN = "swin_nano_patch4_window4_64"
TINY_STUDENT = "mobilenetv3_small_050"


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes, 8 leaves each, 2 shots of each leaf, 64 px."""
    folder = tmp_path_factory.mktemp("data") / "leaves"
    return draw_leaves(folder, leaves_per_class=8, shots_per_leaf=2, image_size=64)


@pytest.fixture(scope="session")
def teacher_run(leaves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny Swin, one epoch."""
    from agridistill.training.run import train
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    out = tmp_path_factory.mktemp("runs") / "teacher"
    fit = FitSettings(model=TINY_SWIN, epochs=1, batch_size=16, pretrained=False, workers=0, precision="fp32")
    train(leaves, out, TrainConfig(data=DataSettings(image_size=64), train=fit))
    return out


@pytest.fixture(scope="session")
def student_run(leaves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny student on labels alone, two epochs."""
    from agridistill.training.run import train
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    out = tmp_path_factory.mktemp("runs") / "student"
    fit = FitSettings(model=TINY_STUDENT, epochs=2, batch_size=16, pretrained=False, workers=0, precision="fp32")
    train(leaves, out, TrainConfig(data=DataSettings(image_size=64), train=fit))
    return out


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported model of 16 px photos, whose logits are their mean green and their mean red; "green", "red"."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    choice = numpy_helper.from_array(np.array([[0, 1], [1, 0], [0, 0]], np.float32) / np.float32(25.5), "choice")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values"], ["colours"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["colours", "choice"], ["logits"]),
        ],
        "colour",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [choice],
    )
    file = tmp_path_factory.mktemp("artefact") / "colour.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    manifest = ModelManifest(
        model="mean_colour",
        classes=("green", "red"),
        preprocessing=Preprocessing(16),
        weights_file=file.name,
        weights_sha256=sha256_of(file),
        precision="fp32",
        measured={"parameters": 6, "macs": 774},
    )
    manifest.write(file.with_suffix(".json"))
    return file


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """The folder that AGRIDISTILL_DATA names; the test is skipped where it names none."""
    named = os.environ.get("AGRIDISTILL_DATA")
    if not named:
        pytest.skip("AGRIDISTILL_DATA names no folder of real photos")
    return Path(named)
