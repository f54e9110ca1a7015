"""Converts a network to LiteRT (.tflite), with the same graph and the same scales as the ONNX file.

The converter cannot use pixels as int8 levels, which engines without float operators need. This module therefore
changes the converter's file, read and written with the classes of LiteRT's schema.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agridistill.errors import ModelError
from agridistill.export.deployed import Deployed, DeployedInt8, quiet
from agridistill.manifest import Preprocessing

_IDENTIFIER = b"TFL3"
# Engines read constants directly from the file, with instructions that need aligned data.
_ALIGNMENT = 16
# Difference between uint8 and int8 levels.
_SHIFT = 128


def to_litert(network: nn.Module, preprocessing: Preprocessing, *, int8: bool) -> bytes:
    """Converts a network to the content of a `.tflite` file.

    Args:
        network: takes normalised photos; for int8 a calibrated network from `models.int8.quantised`.
        preprocessing: preprocessing of the input; it becomes part of the graph (an int8 network contains it already).
        int8: whether to write an int8 file.

    Returns:
        The file's content. The model takes `(1, S, S, 3)` uint8 and returns logits `(1, K)` float32, or int8 if
        `network` comes from `models.int8.with_rounded_logits`.
    """
    with quiet():
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig
    size = preprocessing.image_size
    # The converter supports only these operators; importing it registers them.
    operators = torch.ops.quantized_decomposed
    deployed = (
        DeployedInt8(network, unsigned=False, operators=operators) if int8 else Deployed(network, preprocessing)
    ).eval()
    # This configuration only makes the converter merge pairs of quantise and dequantise into int8 operators.
    static = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        example = (torch.zeros(1, size, size, 3, dtype=torch.uint8),)
        file = Path(folder) / "model.tflite"
        litert_torch.convert(deployed, example, quant_config=static if int8 else None).export(str(file))
        content = file.read_bytes()
    return with_pixel_levels(content) if int8 else content


def with_pixel_levels(content: bytes) -> bytes:
    """Replaces the operators that convert pixels to levels by one QUANTIZE from uint8 to int8; the levels are equal.

    The converter writes CAST, SUB, MUL, QUANTIZE. TensorFlow Lite Micro has no CAST of uint8, and compilers for
    accelerators leave all four on the processor.

    Args:
        content: content of a file whose first operators compute `(pixel - zero point) * scale` and round it to int8.

    Returns:
        The content of the changed file, with the same input and output types.

    Raises:
        ModelError: the file begins with other operators, or its levels are not the 256 levels of a pixel.
    """
    model, graph = _read(content)
    chain = graph.operators[:4]
    names = [_operator_name(model, operator) for operator in chain]
    if names != ["CAST", "SUB", "MUL", "QUANTIZE"] or len(graph.inputs) != 1:
        raise ModelError(
            "a converted file that begins with CAST, SUB, MUL, QUANTIZE",
            ", ".join(names),
            "report this as a bug, with your version of litert-torch",
        )
    pixels, levels = graph.tensors[graph.inputs[0]], graph.tensors[chain[3].outputs[0]]
    scale, zero_point = float(levels.quantization.scale[0]), int(levels.quantization.zeroPoint[0])
    moved, factor = (_constant(model, graph, operator) for operator in chain[1:3])
    if zero_point - moved != -_SHIFT or not np.isclose(factor, scale, rtol=1e-5):
        got = f"(pixel - {moved}) * {factor} in steps of {scale} from {zero_point}"
        raise ModelError(
            "a converted file whose input has the 256 levels of pixels",
            got,
            "report this as a bug, with your version of litert-torch",
        )
    pixels.quantization = _schema().QuantizationParametersT()
    pixels.quantization.scale = np.array([scale], np.float32)
    pixels.quantization.zeroPoint = np.array([zero_point + _SHIFT], np.int64)
    chain[3].inputs = np.array([graph.inputs[0]], np.int32)
    graph.operators = graph.operators[3:]
    return _write(model)


def operator_names(content: bytes) -> tuple[str, ...]:
    """Returns the names of all operators in a `.tflite` file, sorted, such as "CONV_2D"."""
    model, graph = _read(content)
    return tuple(sorted({_operator_name(model, operator) for operator in graph.operators}))


def output_levels(content: bytes) -> tuple[float, int]:
    """Returns scale and zero point of the output of a `.tflite` file with int8 logits.

    Raises:
        ModelError: the output has another type.
    """
    _, graph = _read(content)
    output = graph.tensors[graph.outputs[0]]
    if output.type != _schema().TensorType.INT8:
        raise ModelError(
            "a converted file with int8 logits",
            f"an output of type {output.type}",
            "report this as a bug, with your version of litert-torch",
        )
    return float(output.quantization.scale[0]), int(output.quantization.zeroPoint[0])


def _operator_name(model: Any, operator: Any) -> str:
    """Returns TensorFlow Lite's name of an operator, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    wanted = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(next(name for name, value in vars(_schema().BuiltinOperator).items() if value == wanted))


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _read(content: bytes) -> tuple[Any, Any]:
    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    if len(model.subgraphs) != 1:
        raise ModelError(
            "a converted file with one graph",
            f"{len(model.subgraphs)} graphs",
            "export a network without if-branches or loops",
        )
    return model, model.subgraphs[0]


def _constant(model: Any, graph: Any, operator: Any) -> float:
    """Returns the constant that is an operator's second input, or NaN if it is not a single number."""
    data = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
    values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32)
    return float(values[0]) if len(values) == 1 else float("nan")


def _write(model: Any) -> bytes:
    """Returns the file's content, without the tensors, constants and operator types that are no longer used."""
    import flatbuffers

    graph = model.subgraphs[0]
    operators = graph.operators
    used = {int(index) for operator in operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
    used |= {*map(int, graph.inputs), *map(int, graph.outputs)}
    graph.tensors, new_tensor = _kept(graph.tensors, sorted(used))
    model.operatorCodes, new_code = _kept(model.operatorCodes, sorted({each.opcodeIndex for each in operators}))
    for operator in operators:
        operator.opcodeIndex = new_code(operator.opcodeIndex)
    for owner in (*operators, graph):
        owner.inputs = np.array([new_tensor(index) for index in owner.inputs], np.int32)
        owner.outputs = np.array([new_tensor(index) for index in owner.outputs], np.int32)
    for signature in model.signatureDefs or []:
        for tensor in (*signature.inputs, *signature.outputs):
            tensor.tensorIndex = new_tensor(tensor.tensorIndex)
    # Buffer 0 is empty by convention; metadata refer to buffers as well.
    held = {0} | {tensor.buffer for tensor in graph.tensors} | {each.buffer for each in model.metadata or []}
    model.buffers, new_buffer = _kept(model.buffers, sorted(held))
    for holder in (*graph.tensors, *(model.metadata or [])):
        holder.buffer = new_buffer(holder.buffer)
    for buffer in model.buffers:
        buffer.__class__ = _aligned_buffer()
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _kept(items: Sequence[Any], indices: Sequence[int]) -> tuple[list[Any], Callable[[int], int]]:
    """Returns the items at `indices`, and a function from old to new index; it keeps a negative index (none)."""
    places = {old: new for new, old in enumerate(indices)}
    return [items[index] for index in indices], lambda index: places[int(index)] if index >= 0 else int(index)


def _aligned_buffer() -> type:
    """Returns a class like the schema's buffer, which also writes the alignment that the schema's Python ignores."""
    schema = _schema()

    class AlignedBuffer(schema.BufferT):  # type: ignore[name-defined,misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated code's name
            if self.data is None or not len(self.data):
                return super().Pack(builder)
            content = np.asarray(self.data, np.uint8).tobytes()
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return AlignedBuffer
