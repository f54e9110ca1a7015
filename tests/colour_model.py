"""A model that tells colours: small, exact, and made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agridistill.manifest import ModelManifest, Preprocessing, sha256_of


def colour_model_file(folder: Path, *, attention: bool = False) -> Path:
    """An exported model of 16 px photos, whose logits are their mean green and their mean red; "green", "red".

    With `attention` it has a second output of that name, how bright each pixel is; the largest value must be 255.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    choice = numpy_helper.from_array(np.array([[0, 1], [1, 0], [0, 0]], np.float32) / np.float32(25.5), "choice")
    bright = [
        helper.make_node("ReduceMax", ["values"], ["brightness"], axes=[3], keepdims=0),
        helper.make_node("Div", ["brightness", "most"], ["attention"]),
    ]
    most = numpy_helper.from_array(np.array(255, np.float32), "most")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values"], ["colours"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["colours", "choice"], ["logits"]),
            *(bright if attention else []),
        ],
        "colour",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            *([helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["N", 16, 16])] if attention else []),
        ],
        [choice, most] if attention else [choice],
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "colour.onnx"
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
