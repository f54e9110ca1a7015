"""Drawn leaves and a tiny trained teacher, made once for each test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agridistill.data.synthetic import draw_leaves

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
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported model: its logits are the mean green and the mean red, 10 for the brightest."""
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    from onnx import TensorProto, helper

    from agridistill.manifest import ModelManifest, Preprocessing
    from agridistill.runtime.artefacts import manifest_path

    size = 16
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "order"], ["green_red"], axis=1),
        helper.make_node("Div", ["green_red", "scale"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("order", TensorProto.INT64, [2], [1, 0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [25.5]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["photos", size, size, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["photos", 2])
    graph = helper.make_graph(nodes, "mean_colour", [pixels], [logits], constants)
    # Neither newer than what the oldest supported engine reads.
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("models") / "colour.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = ModelManifest("mean_colour", ("green", "red"), Preprocessing(size), "", "").with_weights(path)
    manifest.write(manifest_path(path))
    return path


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """The folder that AGRIDISTILL_DATA names; the test is skipped where it names none."""
    named = os.environ.get("AGRIDISTILL_DATA")
    if not named:
        pytest.skip("AGRIDISTILL_DATA names no folder of real photos")
    return Path(named)
