"""Converts a network to ONNX: one file, with preprocessing in the graph.

int8 is written as pairs of QuantizeLinear and DequantizeLinear, with the scales that the network was calibrated or
trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import opset18
from torch import nn

from agridistill.export.deployed import Deployed, DeployedInt8, quiet
from agridistill.manifest import Preprocessing

OPSET = 18
# Typed as Any, because onnxscript's annotations lack uint8 for some operators.
op: Any = opset18


def to_onnx(
    network: nn.Module, preprocessing: Preprocessing, *, int8: bool, batch: int | None = None, attention: bool = False
) -> onnx.ModelProto:
    """Converts a network, as for `to_litert`, to an ONNX model.

    `batch` fixes the batch size N, for engines that need fixed shapes. With `attention`, the network returns logits and
    attention maps (`models.with_attention`), not logits alone.

    The model has the input `pixels` `(N, S, S, 3)` uint8 and the output `logits` `(N, K)` float32; with `attention` it
    has a second output `attention` `(N, H, W)` float32.
    """
    deployed = (DeployedInt8(network, unsigned=True) if int8 else Deployed(network, preprocessing)).eval()
    size = preprocessing.image_size
    with quiet():
        program = torch.onnx.export(
            deployed,
            (torch.zeros(batch or 2, size, size, 3, dtype=torch.uint8),),
            input_names=["pixels"],
            output_names=["logits", "attention"] if attention else ["logits"],
            dynamic_shapes=None if batch else {"pixels": {0: torch.export.Dim("photos")}},
            opset_version=OPSET,
            custom_translation_table=_TRANSLATIONS if int8 else None,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("expected a program from torch.onnx.export, got None")
    model: onnx.ModelProto = program.model_proto
    if int8:
        _store_weights_in_8_bits(model.graph)
    for value in model.graph.value_info:
        # The metadata refer to lines of source code, which a device does not need.
        value.ClearField("metadata_props")
    for node in model.graph.node:
        node.ClearField("metadata_props")
    onnx.checker.check_model(model)
    return model


def _quantise_tensor(values: Any, scale: float, zero_point: int, low: int, high: int, dtype: int) -> Any:
    return op.QuantizeLinear(values, _constant(np.float32(scale)), _constant(np.uint8(zero_point - low)))


def _dequantise_tensor(
    levels: Any, scale: float, zero_point: int, low: int, high: int, dtype: int, out_dtype: int = -1
) -> Any:
    # `low` is 0 for a photo's pixels and -128 for all other tensors; the file has levels from 0 to 255.
    return op.DequantizeLinear(levels, _constant(np.float32(scale)), _constant(np.uint8(zero_point - low)))


def _quantise_channels(values: Any, scales: Any, zero_points: Any, axis: int, low: int, high: int, dtype: int) -> Any:
    return op.QuantizeLinear(values, scales, op.Cast(zero_points, to=onnx.TensorProto.INT8), axis=axis)


def _dequantise_channels(
    levels: Any, scales: Any, zero_points: Any, axis: int, low: int, high: int, dtype: int, out_dtype: int = -1
) -> Any:
    return op.DequantizeLinear(levels, scales, op.Cast(zero_points, to=onnx.TensorProto.INT8), axis=axis)


def _constant(value: np.generic) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.asarray(value)))


# x86 multiplies unsigned activations with signed weights, so the int8 levels of activations are shifted by 128.
_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.agridistill.quantize_per_tensor.default: _quantise_tensor,
    torch.ops.agridistill.dequantize_per_tensor.default: _dequantise_tensor,
    torch.ops.agridistill.quantize_per_channel.default: _quantise_channels,
    torch.ops.agridistill.dequantize_per_channel.default: _dequantise_channels,
}


def _store_weights_in_8_bits(graph: onnx.GraphProto) -> None:
    """Stores weights as int8, and biases as int32 in the scale of the engine's sums (input scale x weight scale)."""
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "QuantizeLinear" and node.input[0] in values:
            weight, scales, zero = (values[name] for name in node.input)
            values[node.output[0]] = _levels(weight, scales).astype(zero.dtype)
            graph.initializer.append(numpy_helper.from_array(values[node.output[0]], node.output[0]))
    for node in [node for node in graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) == 3]:
        photo, weight = (makers[name] for name in node.input[:2])
        while photo.op_type != "DequantizeLinear":
            photo = makers[photo.input[0]]
        scale = np.asarray(values[photo.input[1]] * values[weight.input[1]], np.float32)
        bias = _levels(values[node.input[2]], scale).astype(np.int32)
        name = f"{node.output[0]}_bias"
        for part, array in {"": bias, "_scale": scale, "_zero": np.zeros(len(bias), np.int32)}.items():
            graph.initializer.append(numpy_helper.from_array(array, f"{name}{part}"))
        dequantise = onnx.helper.make_node(
            "DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_float"], axis=0
        )
        graph.node.insert(list(graph.node).index(node), dequantise)
        node.input[2] = f"{name}_float"
    _drop_unused(graph)


def _levels(values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    shaped = scales.reshape(-1, *[1] * (values.ndim - 1)) if scales.ndim else scales
    return np.asarray(np.rint(values / shaped))


def _drop_unused(graph: onnx.GraphProto) -> None:
    stored = {item.name for item in graph.initializer}
    made = [node for node in graph.node if not set(node.output) & stored]
    del graph.node[:]
    graph.node.extend(made)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
