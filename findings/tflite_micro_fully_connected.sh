#!/usr/bin/env bash
# tflite-micro 0.dev20261023182759 and ai-edge-litert 2.3.0 (Python 3.11, Linux x86-64): TensorFlow Lite Micro and LiteRT's
# reference kernels agree to the bit in int8 on CONV_2D, and not on FULLY_CONNECTED.
#
# The same weights, bias, scales and inputs in both kinds of operators, 2,000 inputs of 64 values and 6 outputs. About one
# output in a thousand of FULLY_CONNECTED is a level apart, with one scale as with one of each channel: the accumulators are
# scaled with another rounding. A model that is checked on a computer with the reference kernels may so name another class
# on the microcontroller where two logits are a level apart.
#
# Output seen:
#   FULLY_CONNECTED, one scale: 11985 of 12000 outputs equal, 15 one level apart, 0 further
#   FULLY_CONNECTED, a scale a channel: 11985 of 12000 outputs equal, 15 one level apart, 0 further
#   CONV_2D, one scale: 12000 of 12000 outputs equal, 0 one level apart, 0 further
#   CONV_2D, a scale a channel: 12000 of 12000 outputs equal, 0 one level apart, 0 further
#
# What it means for us: the classifier of `export --format micro` is a convolution of one position
# (models/int8.py::with_rounded_logits), and tests/export/test_micro.py compares all bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ai-edge-litert==2.3.0 flatbuffers==25.12.19 numpy==2.4.6 pyyaml bitarray absl-py
"$folder/venv/bin/pip" install --quiet --no-deps tflite-micro==0.dev20261023182759
cat > "$folder/compare.py" <<'P'
import sys
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime

INPUTS, OUTPUTS = 64, 6
rng = np.random.default_rng(0)


def tensor(model, name, kind, shape, scales, zero_point, values=None):
    buffer, new, levels = schema.BufferT(), schema.TensorT(), schema.QuantizationParametersT()
    buffer.data = None if values is None else np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    levels.scale = np.asarray(scales, np.float32)
    levels.zeroPoint = np.full(len(scales), zero_point, np.int64)
    new.name, new.type, new.shape = name, kind, np.array(shape, np.int32)
    new.buffer, new.quantization = len(model.buffers) - 1, levels
    model.subgraphs[0].tensors.append(new)


def layer(kind, channels):
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], [code]
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
    code.version = 4
    one = (1, 1) if kind == "CONV_2D" else ()
    graph.tensors, graph.operators = [], [operator]
    scales = rng.uniform(0.002, 0.004, channels)
    kinds = schema.TensorType
    tensor(model, "in", kinds.INT8, (1, *one, INPUTS), [0.05], -128)
    tensor(model, "weights", kinds.INT8, (OUTPUTS, *one, INPUTS), scales, 0, rng.integers(-63, 64, (OUTPUTS, INPUTS), np.int8))
    tensor(model, "bias", kinds.INT32, (OUTPUTS,), 0.05 * scales, 0, rng.integers(-9999, 9999, OUTPUTS, np.int32))
    tensor(model, "out", kinds.INT8, (1, *one, OUTPUTS), [0.1], 3)
    operator.inputs, operator.outputs = np.array([0, 1, 2], np.int32), np.array([3], np.int32)
    name = "Conv2DOptions" if one else "FullyConnectedOptions"
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    operator.builtinOptions = getattr(schema, f"{name}T")()
    if one:
        operator.builtinOptions.strideH = operator.builtinOptions.strideW = 1
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([3], np.int32)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def differing(content):
    micro = runtime.Interpreter.from_bytes(content, arena_size=1 << 16)
    lite = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    lite.allocate_tensors()
    counts = np.zeros(3, int)
    for _ in range(2000):
        values = rng.integers(-128, 128, lite.get_input_details()[0]["shape"], np.int8)
        micro.set_input(values, 0)
        micro.invoke()
        lite.set_tensor(lite.get_input_details()[0]["index"], values)
        lite.invoke()
        apart = np.abs(micro.get_output(0).astype(int) - lite.get_tensor(lite.get_output_details()[0]["index"]).astype(int))
        counts += [(apart == level).sum() for level in (0, 1)] + [(apart > 1).sum()]
    return counts


for kind in ("FULLY_CONNECTED", "CONV_2D"):
    for name, channels in (("one scale", 1), ("a scale a channel", OUTPUTS)):
        same, one, more = differing(layer(kind, channels))
        print(f"{kind}, {name}: {same} of 12000 outputs equal, {one} one level apart, {more} further")
P
found=$("$folder/venv/bin/python" "$folder/compare.py" 2> /dev/null)
echo "$found"
expected="FULLY_CONNECTED, one scale: 11985 of 12000 outputs equal, 15 one level apart, 0 further
FULLY_CONNECTED, a scale a channel: 11985 of 12000 outputs equal, 15 one level apart, 0 further
CONV_2D, one scale: 12000 of 12000 outputs equal, 0 one level apart, 0 further
CONV_2D, a scale a channel: 12000 of 12000 outputs equal, 0 one level apart, 0 further"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
