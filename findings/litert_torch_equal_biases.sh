#!/usr/bin/env bash
# litert-torch 0.10.0 with torch 2.14.1, torchao 0.18.0 and ai-edge-litert 2.3.0 (Python 3.11, Linux x86-64): in an int8 file,
# a convolution's bias that holds one value throughout is rounded with the scale of the first channel for all channels.
#
# Two convolutions whose biases are all 0.5 are rounded per channel and converted as the package's documentation does it
# (PT2E). The converter keeps a bias of one value as one number, and writes the levels of the first channel to all, though
# each has a scale of its own. No error, no warning. With biases that differ by a ten-thousandth the file is right.
# A bias of one value is what constant initialisation and removed batch norms leave.
#
# Output seen:
#   equal biases: read back from 0.492 to 8.829; largest error 3.590 of a deviation of 0.597
#   nearly equal biases: read back from 0.500 to 0.500; largest error 0.018 of a deviation of 0.597
#
# What it means for us: export varies biases of one value by less than a thousandth of a level
# (export/deployed.py), and tests/export/test_litert.py compares the file with the network.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchao==0.18.0 litert-torch==0.10.0 ai-edge-litert==2.3.0
cat > "$folder/biases.py" <<'P'
import sys
import warnings

warnings.filterwarnings("ignore")
import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def converted(spread, file):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        network[0].weight *= torch.linspace(1, 20, 8)[:, None, None, None]
        for layer in network[::2]:
            layer.bias.copy_(0.5 + torch.linspace(0, spread, 8))
    photos = [torch.rand(1, 3, 16, 16) for _ in range(9)]
    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(network, (photos[0],)).module(), quantizer)
    for photo in photos:
        prepared(photo)
    rounded = convert_pt2e(prepared, fold_quantize=False)
    litert_torch.convert(rounded, (photos[0],), quant_config=QuantConfig(pt2e_quantizer=quantizer)).export(file)
    return photos[0], rounded(photos[0]).detach().numpy()


def report(name, spread):
    photo, expected = converted(spread, sys.argv[1])
    model = Interpreter(sys.argv[1])
    model.allocate_tensors()
    entry, end = model.get_input_details()[0], model.get_output_details()[0]
    scale, zero = entry["quantization"]
    levels = np.clip(np.round(photo.numpy() / scale) + zero, -128, 127).astype(np.int8)
    model.set_tensor(entry["index"], levels)
    model.invoke()
    scale, zero = end["quantization"]
    error = np.abs((model.get_tensor(end["index"]).astype(np.float32) - zero) * scale - expected).max()
    biases = []
    for tensor in model.get_tensor_details():
        scales = tensor["quantization_parameters"]["scales"]
        if tensor["dtype"] == np.int32 and len(scales) == 8:
            biases += (model.get_tensor(tensor["index"]) * scales).tolist()
    print(f"{name}: read back from {min(biases):.3f} to {max(biases):.3f}; "
          f"largest error {error:.3f} of a deviation of {expected.std():.3f}", file=sys.stderr)
    return biases, error


wrong, error = report("equal biases", 0)
right, small = report("nearly equal biases", 1e-4)
assert max(abs(bias - 0.5) for bias in right) < 0.01 and small < 0.1, (right, small)
assert max(abs(bias - 0.5) for bias in wrong) > 0.1 and error > 3 * small, (wrong, error)
P
"$folder/venv/bin/python" "$folder/biases.py" "$folder/model.tflite" 2>&1 | grep "biases: \|Error"
