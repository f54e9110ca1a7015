"""Converts a network to LiteRT (`.tflite`) and, for microcontrollers, to C source.

The graph and its scales are those of the ONNX file. LiteRT's converter cannot use pixels as int8 levels, which engines
without float operators need. This module therefore changes the converted file, with the classes of LiteRT's schema.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
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

    The network takes normalised photos; for int8 it is a calibrated one from `models.quantised`. The preprocessing
    becomes part of the graph (an int8 network contains it already).

    The file takes `(1, S, S, 3)` uint8 and returns logits `(1, K)` float32, or int8 if `network` comes from
    `models.int8.with_rounded_logits`.
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
    accelerators leave all four on the processor. A file that begins with other operators is a ModelError.
    """
    model, graph = _read(content)
    chain = graph.operators[:4]
    names = [_operator_name(model, operator) for operator in chain]
    if names != ["CAST", "SUB", "MUL", "QUANTIZE"] or len(graph.inputs) != 1:
        expected = "a converted file that begins with CAST, SUB, MUL, QUANTIZE"
        raise ModelError(expected, ", ".join(names), "report this as a bug, with your version of litert-torch")
    pixels, levels = graph.tensors[graph.inputs[0]], graph.tensors[chain[3].outputs[0]]
    pixels.quantization = _schema().QuantizationParametersT()
    pixels.quantization.scale = np.array(levels.quantization.scale, np.float32)
    pixels.quantization.zeroPoint = np.array(levels.quantization.zeroPoint, np.int64) + _SHIFT
    chain[3].inputs = np.array([graph.inputs[0]], np.int32)
    graph.operators = graph.operators[3:]
    return _write(model)


def operator_names(content: bytes) -> tuple[str, ...]:
    """Returns the names of all operators in a `.tflite` file, sorted, such as "CONV_2D"."""
    model, graph = _read(content)
    return tuple(sorted({_operator_name(model, operator) for operator in graph.operators}))


def _operator_name(model: Any, operator: Any) -> str:
    """Returns TensorFlow Lite's name of an operator, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    wanted = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(next(name for name, value in vars(_schema().BuiltinOperator).items() if value == wanted))


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _read(content: bytes) -> tuple[Any, Any]:
    """Returns the model in a `.tflite` file and its only graph, as objects of LiteRT's schema."""
    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    return model, model.subgraphs[0]


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
    """Returns the items at `indices`, and a function from old to new index, which keeps negative indices (no item)."""
    places = {old: new for new, old in enumerate(indices)}
    return [items[index] for index in indices], lambda index: places[int(index)] if index >= 0 else int(index)


def _aligned_buffer() -> type:
    """Returns a subclass of the schema's buffer that also writes the alignment, which the schema's own code ignores."""
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


_BYTES_A_LINE = 12
_MARK = "/* Written by agridistill export. */\n"
_MOST_ARENA = 256 << 20
_ASK = (
    "import sys; from tflite_micro.python.tflite_micro import runtime; "
    "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).print_allocations()"
)


@dataclass(frozen=True)
class MicroNeeds:
    """The operators and the memory that TensorFlow Lite Micro needs for a model, and the scale of its output."""

    operators: tuple[str, ...]  # TensorFlow Lite's names of the operators to register
    # Smallest tensor arena, measured on this machine with 8-byte pointers; a device with 4-byte pointers needs less.
    arena_bytes: int | None  # None if `tflite-micro` is not installed
    output_scale: float  # logit = (level - output_zero_point) * output_scale
    output_zero_point: int  # the int8 level of a logit of 0


def micro_needs(content: bytes) -> MicroNeeds:
    """Returns what TensorFlow Lite Micro needs for a model; a ModelError if 256 MiB are not enough to load it."""
    _, graph = _read(content)
    output = graph.tensors[graph.outputs[0]].quantization
    scale, zero_point = float(output.scale[0]), int(output.zeroPoint[0])
    return MicroNeeds(operator_names(content), _arena_bytes(content), scale, zero_point)


def c_sources(content: bytes, needs: MicroNeeds, name: str, classes: tuple[str, ...]) -> dict[str, str]:
    """Returns the content of a `.tflite` file as C texts of `NAME.h` and `NAME.c`, by the keys ".h" and ".c"."""
    # Most compilers for microcontrollers accept only ASCII letters in a name.
    symbol = re.sub(r"\W", "_", name, flags=re.ASCII)
    symbol = f"model_{symbol}" if symbol[:1].isdigit() else symbol
    rows = (content[at : at + _BYTES_A_LINE] for at in range(0, len(content), _BYTES_A_LINE))
    numbers = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)
    labels = "\n".join(f"    {_c_text(each)}," for each in classes)
    arena = "" if needs.arena_bytes is None else f"#define {symbol.upper()}_ARENA_BYTES {needs.arena_bytes}\n"
    header = (
        f"{_MARK}#pragma once\n#include <stddef.h>\n#include <stdint.h>\n\n"
        f"/* Input uint8 pixels (1, height, width, 3), RGB. Operators: {', '.join(needs.operators)}. */\n"
        f"#define {symbol.upper()}_CLASSES {len(classes)}\n{arena}"
        f"/* logit = (level - zero point) * scale */\n"
        f"#define {symbol.upper()}_OUTPUT_SCALE {needs.output_scale!r}f\n"
        f"#define {symbol.upper()}_OUTPUT_ZERO_POINT ({needs.output_zero_point})\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n'
        f"extern const unsigned char {symbol}[];\nextern const size_t {symbol}_bytes;\n"
        f"extern const char *const {symbol}_labels[];\n"
        "#ifdef __cplusplus\n}\n#endif\n"
    )
    source = (
        f'{_MARK}#include "{name}.h"\n\n'
        f"#ifdef __cplusplus\nalignas({_ALIGNMENT})\n#else\n_Alignas({_ALIGNMENT})\n#endif\n"
        f"const unsigned char {symbol}[] = {{\n{numbers}\n}};\n"
        f"const size_t {symbol}_bytes = sizeof({symbol});\n"
        f"const char *const {symbol}_labels[] = {{\n{labels}\n}};\n"
    )
    return {".h": header, ".c": source}


def _c_text(text: str) -> str:
    """Returns a C string literal; bytes beyond ASCII become octal escapes, which always end after three digits."""
    signs = (
        f"\\{byte:03o}" if byte < 32 or byte > 126 or chr(byte) in '"\\?' else chr(byte)
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return '"' + "".join(signs) + '"'


def _arena_bytes(content: bytes) -> int | None:
    """Returns the tensor arena that TensorFlow Lite Micro reports in another process; None if it is not installed."""
    if find_spec("tflite_micro") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(content)
        words = [sys.executable, "-c", _ASK, str(file), str(_MOST_ARENA)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    found = re.search(r"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    if found is None:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        expected = "a model that TensorFlow Lite Micro can load"
        raise ModelError(expected, reason, "report this as a bug, with your version of tflite-micro")
    return -(-int(found[1]) // _ALIGNMENT) * _ALIGNMENT


def require_micro_target(out: Path, precision: str) -> None:
    """Raises a ModelError if `out` is not an int8 `.tflite` file, or its C sources would replace other files."""
    if (out.suffix, precision) != (".tflite", "int8"):
        raise ModelError(
            "an int8 .tflite file for --micro", f"{precision} '{out.name}'", "pass --out NAME.tflite --precision int8"
        )
    for path in (out.with_suffix(suffix) for suffix in (".c", ".h")):
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(_MARK.encode())):
            expected = f"no other file where the C source '{path.name}' goes"
            raise ModelError(expected, f"'{path}', which is another file", "choose another name or folder")
